"""Operators of the FHIRPath subset in SQL: logic, equality, order, arithmetic, text.

FHIRPath 2.0 (N1), sections 6.1 to 6.6. Types are checked here, before anything runs: comparing a date with a string
is refused, not answered with empty.
"""

from collections.abc import Callable

from connector.views.sql.elements import EMPTY
from connector.views.sql.values import NOTHING, Value, as_list, macro_call, plain, single
from connector.views.sql.view_errors import Place, view_error

__all__ = ["apply", "boolean", "conjunction", "negate"]

_ORDER = {"<", ">", "<=", ">="}
_MATH = {"+", "-", "*", "/", "div", "mod"}
_NUMERIC = {"integer", "decimal"}


def boolean(value: Value, variable: str, place: Place, at: int) -> str:
    """SQL of a boolean condition. Raises: VHT-VIEW-TYPE where the value can be nothing of the kind."""
    if value.type == EMPTY:
        return "CAST(NULL AS BOOLEAN)"
    if value.kind != "boolean" or value.root:
        raise view_error("TYPE", place, f"expected a boolean, found {value.type}", at=at)
    return single(value, variable, place, at).sql


def conjunction(operator: str, conditions: list[str]) -> Value:
    """``and``, ``or``, ``xor``, ``implies`` over SQL conditions, in FHIRPath's three-valued logic."""
    if operator == "xor":
        return Value(f"({conditions[0]}) <> ({conditions[1]})", "boolean")
    if operator == "implies":
        return Value(f"((NOT ({conditions[0]})) OR ({conditions[1]}))", "boolean")
    return Value("(" + f" {operator.upper()} ".join(f"({one})" for one in conditions) + ")", "boolean")


def negate(value: Value, variable: str, place: Place, at: int, *, tolerant: bool = False) -> Value:
    """Unary minus; ``tolerant`` as for ``apply``."""
    if value.type == EMPTY:
        return NOTHING
    if value.kind not in _NUMERIC:
        raise view_error("TYPE", place, f"a {value.type} has no sign", at=at)
    one, number = plain(single(value, variable, place, at)), _number(value)
    return Value(_within(f"(-({_wide(one)}))") if tolerant and number == "integer" else f"(-({one}))", number)


def apply(
    operator: str,
    left: Value,
    right: Value,
    fresh: Callable[[], str],
    place: Place,
    at: int,
    *,
    tolerant: bool = False,
) -> Value:
    """``left operator right`` for all but logic. An integer beyond 64 bits stops the query; ``tolerant``: it is empty,
    and that costs no more than any other value (an error that is caught costs as much as thousands of rows)."""
    if operator in {"=", "!="}:
        equal = _equality(left, right, fresh, place, at)
        return equal if operator == "=" else Value(f"(NOT ({equal.sql}))", "boolean")
    first, second = single(left, fresh(), place, at), single(right, fresh(), place, at)
    if operator == "&":
        return _joined(first, second, place, at)
    if EMPTY in {left.type, right.type}:
        return Value("CAST(NULL AS BOOLEAN)", "boolean") if operator in _ORDER else NOTHING
    if operator in _ORDER:
        return _order(operator, first, second, fresh, place, at)
    assert operator in _MATH
    return _arithmetic(operator, first, second, place, at, tolerant=tolerant)


def _number(*values: Value) -> str:
    return "decimal" if any(value.kind == "decimal" for value in values) else "integer"


def _comparable(left: Value, right: Value, place: Place, at: int) -> str:
    kinds = {left.kind, right.kind}
    if kinds <= _NUMERIC:
        return "number"
    if len(kinds) == 1 and not kinds & {"complex", EMPTY} and not (left.root or right.root):
        return left.kind
    hint = "a date is written @2020-01-31" if kinds == {"date", "string"} else ""
    raise view_error("TYPE", place, f"{left.type} and {right.type} do not compare", at=at, hint=hint)


def _equal(common: str, left: str, right: str, fresh: Callable[[], str]) -> str:
    if common == "date":
        return macro_call("vht_date_equal", fresh(), left, right)
    if common == "time":
        return f"(CAST({left} AS TIME) = CAST({right} AS TIME))"
    return f"({left} = {right})"


def _equality(left: Value, right: Value, fresh: Callable[[], str], place: Place, at: int) -> Value:
    if EMPTY in {left.type, right.type}:
        return Value("CAST(NULL AS BOOLEAN)", "boolean")
    common = _comparable(left, right, place, at)
    if not left.many and not right.many:
        return Value(_equal(common, plain(left), plain(right), fresh), "boolean")
    if left.many and right.many and common not in {"date", "time"}:
        one, two = (as_list(Value(plain(side), side.type, True, side.dense), fresh()) for side in (left, right))
        return Value(f"CASE WHEN len({one}) > 0 AND len({two}) > 0 THEN {one} = {two} END", "boolean")
    if not left.many:
        left, right = right, left
    alone = plain(single(right, fresh(), place, at))
    listed = as_list(Value(plain(left), left.type, True, left.dense), fresh())
    return Value(
        f"CASE WHEN len({listed}) > 0 AND {alone} IS NOT NULL "
        f"THEN CASE WHEN len({listed}) = 1 THEN {_equal(common, f'({listed})[1]', alone, fresh)} ELSE false END END",
        "boolean",
    )


def _order(operator: str, left: Value, right: Value, fresh: Callable[[], str], place: Place, at: int) -> Value:
    common = _comparable(left, right, place, at)
    if common == "boolean":
        raise view_error("TYPE", place, "booleans have no order", at=at)
    one, two = plain(left), plain(right)
    if common == "date":
        if operator in {">", ">="}:
            one, two = two, one
        macro = "vht_date_before" if len(operator) == 1 else "vht_date_not_after"
        return Value(macro_call(macro, fresh(), one, two), "boolean")
    if common == "time":
        one, two = f"CAST({one} AS TIME)", f"CAST({two} AS TIME)"
    return Value(f"({one} {operator} {two})", "boolean")


def _joined(left: Value, right: Value, place: Place, at: int) -> Value:
    for side in (left, right):
        if side.kind not in {"string", EMPTY}:
            raise view_error("TYPE", place, f"& joins strings, not {side.type}", at=at)
    return Value(f"(coalesce({left.sql}, '') || coalesce({right.sql}, ''))", "string")


def _wide(sql: str) -> str:
    return f"CAST({sql} AS HUGEINT)"


def _within(sql: str) -> str:
    """A wide integer where it has 64 bits, else NULL."""
    return f"TRY_CAST({sql} AS BIGINT)"


def _arithmetic(operator: str, left: Value, right: Value, place: Place, at: int, *, tolerant: bool) -> Value:
    if operator == "+" and left.kind == right.kind == "string":
        return Value(f"({left.sql} || {right.sql})", "string")
    if not {left.kind, right.kind} <= _NUMERIC:
        raise view_error("TYPE", place, f"{left.type} {operator} {right.type} is not defined", at=at)
    one, two, number = plain(left), plain(right), _number(left, right)
    if operator == "/":
        return Value(f"(CAST({one} AS DOUBLE) / nullif(CAST({two} AS DOUBLE), 0))", "decimal")
    if operator == "div":
        quotient = f"trunc(CAST({one} AS DOUBLE) / nullif(CAST({two} AS DOUBLE), 0))"
        return Value(_within(quotient) if tolerant else f"CAST({quotient} AS BIGINT)", "integer")
    bounded = tolerant and number == "integer"
    if bounded:
        one, two = _wide(one), _wide(two)
    sql = f"({one} % nullif({two}, 0))" if operator == "mod" else f"({one} {operator} {two})"
    return Value(_within(sql) if bounded else sql, number)
