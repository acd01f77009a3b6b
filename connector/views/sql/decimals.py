"""FHIRPath's Decimal: exact in steps of 1e-8, as SQL's ``DECIMAL(28, 8)``; what leaves its range is empty.

A decimal that is only read or shown stays a DOUBLE, which is fast and holds every decimal of up to 15 digits. The first
operation of arithmetic makes it exact: of all decimals that a DOUBLE may stand for, the shortest is the one that was
written.
"""

from collections.abc import Callable

from connector.views.sql import building as sql
from connector.views.sql.expressions import Cast, Expression, Parameter, Text
from connector.views.sql.values import Value, plain

__all__ = ["arithmetic", "exact", "exact_pair", "is_literal", "negated", "quotient", "whole_quotient"]

_TYPE = "DECIMAL(28, 8)"
_Fresh = Callable[[], Parameter]
_READ_BITS = 53  # of an integer that a DOUBLE holds


def exact(value: Value, fresh: _Fresh) -> Expression:
    """A number as DECIMAL; NULL beyond FHIRPath's range."""
    if value.fixed:
        return value.expression
    if value.kind == "integer":
        return sql.cast(value.expression, _TYPE)
    written = _literal_text(value)
    if written is not None:
        return sql.cast(written, _TYPE, lenient=True)
    return sql.macro_call("vht_decimal", fresh(), plain(value), light=True)


def is_literal(value: Value) -> bool:
    """True of a decimal that stands in the view."""
    return _literal_text(value) is not None


def _literal_text(value: Value) -> Text | None:
    expression = value.expression
    if isinstance(expression, Cast) and expression.type == "DOUBLE" and isinstance(expression.operands[0], Text):
        return expression.operands[0]
    return None


def exact_pair(left: Value, right: Value, fresh: _Fresh) -> tuple[Expression, Expression]:
    """Two numbers in one SQL type in which comparing them is exact: as they are read, where both are."""
    if left.kind == right.kind == "integer":
        return left.expression, right.expression
    if left.fixed or right.fixed or (is_literal(left) and is_literal(right)) or _wide(left) or _wide(right):
        return exact(left, fresh), exact(right, fresh)
    return plain(left), plain(right)


def _wide(value: Value) -> bool:
    """True of an integer that may have more bits than a DOUBLE holds: FHIR's have 32, literals say how many."""
    if value.kind != "integer" or value.node is not None:
        return False
    digits = value.expression.operands[0] if isinstance(value.expression, Cast) else None
    return digits is None or digits.length > _READ_BITS * 3 // 10


def arithmetic(operator: str, left: Value, right: Value, fresh: _Fresh) -> Value:
    """``+``, ``-``, ``*`` and ``mod`` where one side is a decimal."""
    first, second = exact(left, fresh), exact(right, fresh)
    if operator == "*":
        return _fixed(sql.macro_call("vht_product", fresh(), first, second))
    if operator == "mod":
        return _fixed(sql.infix("%", first, sql.call("nullif", second, sql.number(0))))
    return _fixed(sql.cast(sql.infix(operator, first, second), _TYPE, lenient=True))


def quotient(left: Value, right: Value, fresh: _Fresh) -> Value:
    """``/``, of integers too."""
    return _fixed(sql.macro_call("vht_quotient", fresh(), exact(left, fresh), exact(right, fresh)))


def whole_quotient(left: Value, right: Value, fresh: _Fresh) -> Value:
    """``div`` where one side is a decimal; beyond 64 bits it is empty."""
    return Value(sql.macro_call("vht_whole_quotient", fresh(), exact(left, fresh), exact(right, fresh)), "integer")


def negated(value: Value) -> Value:
    """The sign turned, of a single decimal."""
    written = _literal_text(value)
    if written is not None and not written.value.startswith("-"):
        return Value(sql.cast(sql.text(f"-{written.value}"), "DOUBLE"), "decimal")
    if value.fixed:
        return _fixed(sql.minus(value.expression))
    return Value(sql.minus(plain(value)), "decimal")


def _fixed(expression: Expression) -> Value:
    return Value(expression, "decimal", fixed=True)
