"""Short ways to build ``connector.views.sql.expressions``: ``call("len", items)``, ``infix("=", left, right)``."""

from connector.views.sql.expressions import (
    Call,
    Case,
    Cast,
    Column,
    Constant,
    Expression,
    Field,
    Infix,
    Lambda,
    ListOf,
    Macro,
    Parameter,
    Postfix,
    Prefix,
    Query,
    StructOf,
    Subscript,
    Text,
    is_chain,
)

__all__ = ["FALSE", "NULL", "TRUE", "absent", "call", "case", "cast", "column", "field", "infix", "keeping",
           "listing", "macro", "macro_call", "mapping", "minus", "negation", "number", "present", "query", "subscript",
           "text"]  # fmt: skip

NULL, TRUE, FALSE = (Constant(sql=keyword) for keyword in ("NULL", "true", "false"))


def text(value: str) -> Text:
    return Text(value=value)


def number(value: int | str) -> Expression:
    """A number of SQL; a sign is an operator."""
    digits = str(value)
    return minus(number(digits[1:])) if digits.startswith("-") else Constant(sql=digits)


def column(name: str) -> Column:
    return Column(name=name)


def field(source: Expression, name: str) -> Field:
    return Field(operands=(source,), name=name)


def subscript(source: Expression, position: Expression | int) -> Subscript:
    return Subscript(operands=(source, number(position) if isinstance(position, int) else position))


def call(function: str, *operands: Expression) -> Call:
    return Call(function=function, operands=operands)


def infix(operator: str, *operands: Expression) -> Expression:
    """One operand stands for itself."""
    return Infix(operator=operator, operands=operands) if len(operands) > 1 else operands[0]


def minus(operand: Expression) -> Prefix:
    return Prefix(operator="-", operands=(operand,))


def negation(condition: Expression) -> Prefix:
    return Prefix(operator="NOT", operands=(condition,))


def present(value: Expression) -> Postfix:
    return Postfix(operator="IS NOT NULL", operands=(value,))


def absent(value: Expression) -> Postfix:
    return Postfix(operator="IS NULL", operands=(value,))


def case(condition: Expression, value: Expression, otherwise: Expression | None = None) -> Case:
    return Case(operands=(condition, value) if otherwise is None else (condition, value, otherwise))


def cast(operand: Expression, type_: str, *, lenient: bool = False) -> Cast:
    return Cast(operands=(operand,), type=type_, lenient=lenient)


def listing(*items: Expression) -> ListOf:
    return ListOf(operands=items)


def mapping(items: Expression, parameter: Parameter, item: Expression) -> Call:
    """``item``, written over ``parameter``, of each of ``items``."""
    return call("list_transform", items, Lambda(parameter=parameter, operands=(item,)))


def keeping(items: Expression, parameter: Parameter, condition: Expression) -> Call:
    """Those of ``items`` that meet ``condition``, written over ``parameter``."""
    return call("list_filter", items, Lambda(parameter=parameter, operands=(condition,)))


def macro(name: str, *operands: Expression, light: bool = False) -> Macro:
    """A call of a macro, which may write an operand several times."""
    return Macro(function=name, operands=operands, light=light)


def macro_call(name: str, parameter: Parameter, *operands: Expression, light: bool = False) -> Expression:
    """A call of a macro that writes and computes each operand once: a macro repeats what stands in it, and macros of
    macros would repeat it without bound."""
    if all(is_chain(operand) or isinstance(operand, Text) for operand in operands):
        return macro(name, *operands, light=light)
    names = tuple(f"o{position}" for position in range(len(operands)))
    held = StructOf(names=names, operands=operands)
    return subscript(
        mapping(listing(held), parameter, macro(name, *(field(parameter, name) for name in names), light=light)), 1
    )


def query(*parts: str | Expression) -> Query:
    """SQL with expressions in it."""
    texts, operands = [""], []
    for part in parts:
        if isinstance(part, str):
            texts[-1] += part
        else:
            operands.append(part)
            texts.append("")
    return Query(texts=tuple(texts), operands=tuple(operands))
