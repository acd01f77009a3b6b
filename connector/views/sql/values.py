"""What a FHIRPath expression is while it becomes SQL: a piece of SQL with its FHIR type and cardinality.

A single value is a nullable SQL value, NULL being the empty collection. A collection is a SQL list; NULL and ``[]`` are
both empty. Boolean logic is three-valued in both languages, so ``and``, ``or`` and ``not`` carry over as they are.
"""

import re
from dataclasses import dataclass, replace

from connector.duckdb_lockdown import quoted
from connector.views.sql.elements import EMPTY, Choice, Element, is_primitive, kind
from connector.views.sql.schema import ReadNode, identifier
from connector.views.sql.view_errors import Place

__all__ = ["NOTHING", "NOT_SINGLE", "Choosing", "Value", "as_list", "choose", "fail_sql", "macro_call", "member",
           "plain", "rewrite", "single"]  # fmt: skip

NOT_SINGLE = "VHT-VIEW-NOT-SINGLE"
_CHAIN = re.compile(r'["\w.]+')
_QUOTED_OR_NAME = re.compile(r"""'[^']*'|"[^"]*"|\w+""")
_SIMPLE = re.compile(r"""["\w.]+|'[^']*'""")


@dataclass(frozen=True)
class Value:
    """``dense``: no NULL stands in the list. ``node`` is where it is read from; None for what is computed.

    ``root`` marks the resource itself, which has columns, not a SQL value of its own; ``sql`` is then the condition
    under which it is there at all.
    """

    sql: str
    type: str
    many: bool = False
    dense: bool = True
    node: ReadNode | None = None
    targets: tuple[str, ...] = ()
    root: bool = False

    @property
    def kind(self) -> str:
        return kind(self.type)

    def one(self, sql: str) -> "Value":
        """An item of this collection, standing at ``sql``."""
        return replace(self, sql=sql, many=False, dense=True)


@dataclass(frozen=True)
class Choosing:
    """``value[x]`` before ``ofType`` says which."""

    parent: Value
    choice: Choice


NOTHING = Value("NULL", EMPTY)


def fail_sql(code: str, place: Place, at: int) -> str:
    """SQL that stops the query with ``code`` and the place; never with a value."""
    return f"error({quoted(f'{code} {place.at(at)}')})"


def _dot(sql: str, name: str) -> str:
    return f"{sql if _CHAIN.fullmatch(sql) else f'({sql})'}.{identifier(name)}"


def _opened(sql: str, node: ReadNode) -> str:
    return f"from_json({sql}, {quoted(node.structure())})" if node.whole else sql


def rewrite(value: Value, variable: str, inner: str) -> str:
    """SQL of ``inner`` (written over ``variable``) for the one item, or for each item of the list."""
    if value.many:
        return f"list_transform({value.sql}, lambda {variable}: {inner})"
    if _CHAIN.fullmatch(value.sql):
        return _replaced(inner, variable, value.sql)
    return f"list_transform([{value.sql}], lambda {variable}: {inner})[1]"


def _replaced(sql: str, variable: str, chain: str) -> str:
    """``sql`` with ``chain`` for ``variable``, wherever it is not part of a text or a quoted name."""
    return _QUOTED_OR_NAME.sub(lambda match: chain if match.group() == variable else match.group(), sql)


def macro_call(macro: str, variable: str, *operands: str) -> str:
    """A call of ``macro`` that writes and computes each operand once: a macro repeats what stands in it, and macros of
    macros would repeat it without bound."""
    if all(_SIMPLE.fullmatch(one) for one in operands):
        return f"{macro}({', '.join(operands)})"
    held = ", ".join(f"'o{number}': {one}" for number, one in enumerate(operands))
    names = ", ".join(f"{variable}.o{number}" for number in range(len(operands)))
    return f"list_transform([{{{held}}}], lambda {variable}: {macro}({names}))[1]"


def member(source: Value, element: Element, variable: str) -> Value:
    """``source.element``: lists flatten; the element joins the read schema."""
    assert source.node is not None
    node = source.node.child(element)
    dense = element.many and not is_primitive(element.type)
    made = Value("", element.type, element.many, dense or not element.many, node, element.targets)
    if source.root:
        column = identifier(element.name)
        return replace(made, sql=f"CASE WHEN {source.sql} THEN {column} END" if source.sql else column)
    if not source.many:
        return replace(made, sql=_dot(_opened(source.sql, source.node), element.name))
    listed = f"list_transform({source.sql}, lambda {variable}: {_dot(_opened(variable, source.node), element.name)})"
    return replace(made, sql=f"flatten({listed})" if element.many else listed, many=True, dense=dense)


def choose(choosing: Choosing, type_name: str, variable: str) -> Value:
    """``value.ofType(type_name)``; nothing where the choice has no such option."""
    element = choosing.choice.options.get(type_name)
    return member(choosing.parent, element, variable) if element else NOTHING


def as_list(value: Value, variable: str) -> str:
    """SQL of a list without NULLs; may be NULL itself when empty."""
    if value.type == EMPTY:
        return "[]"
    if not value.many:
        return f"CASE WHEN {value.sql} IS NOT NULL THEN [{value.sql}] ELSE [] END"
    return value.sql if value.dense else f"list_filter({value.sql}, lambda {variable}: {variable} IS NOT NULL)"


def single(value: Value, variable: str, place: Place, at: int) -> Value:
    """The one item, NULL when empty; more than one stops the query with VHT-VIEW-NOT-SINGLE."""
    if not value.many:
        return value
    listed = as_list(value, variable)
    return value.one(f"CASE WHEN len({listed}) > 1 THEN {fail_sql(NOT_SINGLE, place, at)} ELSE ({listed})[1] END")


def plain(value: Value) -> str:
    """SQL in the type's own SQL type: a decimal read for its exact digits becomes a number again."""
    if value.node is not None and value.node.exact and value.type == "decimal":
        return f"CAST({value.sql} AS DOUBLE{'[]' if value.many else ''})"
    return value.sql
