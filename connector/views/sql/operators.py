"""Operators of the FHIRPath subset in SQL: logic, equality, order, arithmetic, text.

FHIRPath 2.0 (N1), sections 6.1 to 6.6. Types are checked here, before anything runs: comparing a date with a string
is refused, not answered with empty. Decimals are exact (``connector.views.sql.decimals``).
"""

from collections.abc import Callable

from connector.fhir.r4.elements import EMPTY
from connector.views.sql import building as sql
from connector.views.sql import decimals
from connector.views.sql.expressions import Expression, Parameter
from connector.views.sql.values import NOTHING, Value, as_list, plain, single
from connector.views.sql.view_errors import Place, view_error

__all__ = ["apply", "boolean", "conjunction", "negate"]

_ORDER = {"<", ">", "<=", ">="}
_MATH = {"+", "-", "*", "/", "div", "mod"}
_WHOLE = {"div": "//", "mod": "%"}
_NUMERIC = {"integer", "decimal"}
_UNKNOWN = sql.cast(sql.NULL, "BOOLEAN")
_Fresh = Callable[[], Parameter]


def boolean(value: Value, parameter: Parameter, place: Place, at: int) -> Expression:
    """A boolean condition. Raises: VHT-VIEW-TYPE where the value can be nothing of the kind."""
    if value.type == EMPTY:
        return _UNKNOWN
    if value.kind != "boolean" or value.root:
        raise view_error("TYPE", place, f"expected a boolean, found {value.type}", at=at)
    return single(value, parameter, place, at).expression


def conjunction(operator: str, conditions: list[Expression]) -> Value:
    """``and``, ``or``, ``xor``, ``implies`` over conditions, in FHIRPath's three-valued logic."""
    if operator == "xor":
        return Value(sql.infix("<>", *conditions), "boolean")
    if operator == "implies":
        return Value(sql.infix("OR", sql.negation(conditions[0]), conditions[1]), "boolean")
    return Value(sql.infix(operator.upper(), *conditions), "boolean")


def negate(value: Value, parameter: Parameter, place: Place, at: int, *, tolerant: bool = False) -> Value:
    """Unary minus; ``tolerant`` as for ``apply``."""
    if value.type == EMPTY:
        return NOTHING
    if value.kind not in _NUMERIC:
        raise view_error("TYPE", place, f"a {value.type} has no sign", at=at)
    operand = single(value, parameter, place, at)
    if value.kind == "decimal":
        return decimals.negated(operand)
    integer = operand.expression
    return Value(_within(sql.minus(_wide(integer))) if tolerant else sql.minus(integer), "integer")


def apply(
    operator: str,
    left: Value,
    right: Value,
    fresh: _Fresh,
    place: Place,
    at: int,
    *,
    tolerant: bool = False,
) -> Value:
    """``left operator right`` for all but logic. An integer beyond 64 bits stops the query; ``tolerant``: it is empty,
    and that costs no more than any other value (an error that is caught costs as much as thousands of rows)."""
    if operator in {"=", "!="}:
        equal = _equality(left, right, fresh, place, at)
        return equal if operator == "=" else Value(sql.negation(equal.expression), "boolean")
    first, second = single(left, fresh(), place, at), single(right, fresh(), place, at)
    if operator == "&":
        return _joined(first, second, place, at)
    if EMPTY in {left.type, right.type}:
        return Value(_UNKNOWN, "boolean") if operator in _ORDER else NOTHING
    if operator in _ORDER:
        return _order(operator, first, second, fresh, place, at)
    assert operator in _MATH
    return _arithmetic(operator, first, second, fresh, place, at, tolerant=tolerant)


def _comparable(left: Value, right: Value, place: Place, at: int) -> str:
    kinds = {left.kind, right.kind}
    if kinds <= _NUMERIC:
        return "number"
    if len(kinds) == 1 and not kinds & {"complex", EMPTY} and not (left.root or right.root):
        return left.kind
    hint = "a date is written @2020-01-31" if kinds == {"date", "string"} else ""
    raise view_error("TYPE", place, f"{left.type} and {right.type} do not compare", at=at, hint=hint)


def _equal(common: str, left: Value, right: Value, fresh: _Fresh) -> Expression:
    """Of two single values."""
    if common == "date":
        return sql.macro_call("vht_date_equal", fresh(), left.expression, right.expression)
    return sql.infix("=", *_sides(common, left, right, fresh))


def _sides(common: str, left: Value, right: Value, fresh: _Fresh) -> tuple[Expression, Expression]:
    """Two single values that are no dates, as SQL compares them."""
    if common == "number":
        return decimals.exact_pair(left, right, fresh)
    if common == "time":
        first, second = (sql.macro("vht_clock", side.expression, light=True) for side in (left, right))
        return first, second
    return left.expression, right.expression


def _length(items: Expression) -> Expression:
    return sql.call("len", items)


def _equality(left: Value, right: Value, fresh: _Fresh, place: Place, at: int) -> Value:
    if EMPTY in {left.type, right.type}:
        return Value(_UNKNOWN, "boolean")
    common = _comparable(left, right, place, at)
    if not left.many and not right.many:
        return Value(_equal(common, left, right, fresh), "boolean")
    if left.many and right.many and common not in {"date", "time"}:
        ours, theirs = (as_list(Value(plain(side), side.type, True, side.dense), fresh()) for side in (left, right))
        both = sql.infix("AND", *(sql.infix(">", _length(items), sql.number(0)) for items in (ours, theirs)))
        return Value(sql.case(both, sql.infix("=", ours, theirs)), "boolean")
    if not left.many:
        left, right = right, left
    alone = single(right, fresh(), place, at)
    items = as_list(left, fresh())
    both = sql.infix("AND", sql.infix(">", _length(items), sql.number(0)), sql.present(alone.expression))
    equal = _equal(common, left.one(sql.subscript(items, 1)), alone, fresh)
    return Value(
        sql.case(both, sql.case(sql.infix("=", _length(items), sql.number(1)), equal, sql.FALSE)),
        "boolean",
    )


def _order(operator: str, left: Value, right: Value, fresh: _Fresh, place: Place, at: int) -> Value:
    common = _comparable(left, right, place, at)
    if common == "boolean":
        raise view_error("TYPE", place, "booleans have no order", at=at)
    if common == "date":
        first, second = left.expression, right.expression
        if operator in {">", ">="}:
            first, second = second, first
        macro = "vht_date_before" if len(operator) == 1 else "vht_date_not_after"
        return Value(sql.macro_call(macro, fresh(), first, second), "boolean")
    return Value(sql.infix(operator, *_sides(common, left, right, fresh)), "boolean")


def _joined(left: Value, right: Value, place: Place, at: int) -> Value:
    for side in (left, right):
        if side.kind not in {"string", EMPTY}:
            raise view_error("TYPE", place, f"& joins strings, not {side.type}", at=at)
    texts = (sql.call("coalesce", side.expression, sql.text("")) for side in (left, right))
    return Value(sql.infix("||", *texts), "string")


def _wide(integer: Expression) -> Expression:
    return sql.cast(integer, "HUGEINT")


def _within(integer: Expression) -> Expression:
    """A wide integer where it has 64 bits, else NULL."""
    return sql.cast(integer, "BIGINT", lenient=True)


def _not_zero(divisor: Expression) -> Expression:
    return sql.call("nullif", divisor, sql.number(0))


def _arithmetic(
    operator: str, left: Value, right: Value, fresh: _Fresh, place: Place, at: int, *, tolerant: bool
) -> Value:
    if operator == "+" and left.kind == right.kind == "string":
        return Value(sql.infix("||", left.expression, right.expression), "string")
    if not {left.kind, right.kind} <= _NUMERIC:
        raise view_error("TYPE", place, f"{left.type} {operator} {right.type} is not defined", at=at)
    if operator == "/":
        return decimals.quotient(left, right, fresh)
    if "decimal" in {left.kind, right.kind}:
        if operator == "div":
            return decimals.whole_quotient(left, right, fresh)
        return decimals.arithmetic(operator, left, right, fresh)
    first, second = left.expression, right.expression
    if tolerant:
        first, second = _wide(first), _wide(second)
    if operator in _WHOLE:
        second = _not_zero(second)
    result = sql.infix(_WHOLE.get(operator, operator), first, second)
    return Value(_within(result) if tolerant else result, "integer")
