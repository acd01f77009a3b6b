"""SQL macros for what takes more than one expression: partial dates, decimals, boundaries, reference keys.

Times: FHIRPath 2.0 (N1) compares partial dates component by component and answers empty where precision runs out.
That is the same as comparing the intervals that the texts denote: disjoint intervals decide, equal intervals are
equal, overlapping ones are unknown. Seconds and their fractions count as one precision. A day is taken in UTC. A time
without an offset, beside one that has an offset, may be of any zone from +14:00 to -12:00, as for ``lowBoundary`` and
``highBoundary``; two without one are of the same zone. Second 60 lies after second 59 and before the next minute; its
fraction does not count.

Decimals: ``vht_quotient`` and ``vht_product`` take and give ``DECIMAL(28, 8)``, FHIRPath's range and step; a last digit
that does not fit is rounded half away from zero, and what leaves the range is empty (FHIRPath 2.0, section 6.6).
``vht_decimal`` goes by way of the text only where SQL's own cast might round the other way: a DOUBLE of five digits
before the point errs by less than .01 steps.
"""

from collections.abc import Iterator

from connector.views.sql.expressions import Expression, Macro

__all__ = ["prelude"]

_OFFSET = r"(Z|[+-]\d\d:\d\d)$"

_MACROS = {
    "vht_low_date": "(t) AS CASE length(t) WHEN 4 THEN t || '-01-01' WHEN 7 THEN t || '-01' ELSE t END",
    "vht_high_date": (
        "(t) AS CASE length(t) WHEN 4 THEN t || '-12-31' "
        "WHEN 7 THEN CAST(last_day(CAST(t || '-01' AS DATE)) AS VARCHAR) ELSE t END"
    ),
    "vht_zoned": f"(t) AS regexp_matches(t, '{_OFFSET}')",
    # of two numbers a microsecond, the odd one belongs to a leap second
    "vht_point": (
        "(t) AS 2 * epoch_us(CAST(replace(replace(t, ':60.', ':59.999999'), ':60', ':59.999999') AS TIMESTAMPTZ)) "
        "+ CAST(contains(t, ':60') AS BIGINT)"
    ),
    "vht_start": (
        "(t, other) AS vht_point(CASE WHEN length(t) <= 10 THEN vht_low_date(t) || 'T00:00:00Z' WHEN vht_zoned(t) "
        "THEN t WHEN vht_zoned(other) THEN t || '+14:00' ELSE t || 'Z' END)"
    ),
    "vht_stop": (
        "(t, other) AS vht_point(CASE WHEN length(t) <= 10 THEN vht_high_date(t) || 'T23:59:60Z' WHEN vht_zoned(t) "
        "THEN t WHEN vht_zoned(other) THEN t || '-12:00' ELSE t || 'Z' END)"
    ),
    "vht_date_equal": (
        "(a, b) AS CASE WHEN vht_stop(a, b) < vht_start(b, a) OR vht_start(a, b) > vht_stop(b, a) THEN false "
        "WHEN vht_start(a, b) = vht_start(b, a) AND vht_stop(a, b) = vht_stop(b, a) THEN true END"
    ),
    "vht_date_before": (
        "(a, b) AS CASE WHEN vht_stop(a, b) < vht_start(b, a) THEN true WHEN vht_start(a, b) > vht_stop(b, a) "
        "OR vht_start(a, b) = vht_start(b, a) AND vht_stop(a, b) = vht_stop(b, a) THEN false END"
    ),
    "vht_date_not_after": (
        "(a, b) AS CASE WHEN vht_stop(a, b) < vht_start(b, a) "
        "OR vht_start(a, b) = vht_start(b, a) AND vht_stop(a, b) = vht_stop(b, a) THEN true "
        "WHEN vht_start(a, b) > vht_stop(b, a) THEN false END"
    ),
    "vht_clock": "(t) AS CASE WHEN length(t) > 8 THEN rtrim(rtrim(t, '0'), '.') ELSE t END",
    "vht_decimal": (
        "(x) AS CASE WHEN abs(x) < 100000 AND abs(abs(x * 100000000 % 1) - 0.5) > 0.01 "
        "THEN CAST(x AS DECIMAL(28, 8)) ELSE TRY_CAST(CAST(x AS VARCHAR) AS DECIMAL(28, 8)) END"
    ),
    "vht_units": "(d) AS CAST(d * 100000000 AS HUGEINT)",
    "vht_of_units": (
        "(n) AS CASE WHEN abs(n) < 10000000000000000000000000000 "
        "THEN CAST(CAST(n AS DECIMAL(28, 0)) * CAST(0.00000001 AS DECIMAL(8, 8)) AS DECIMAL(28, 8)) END"
    ),
    "vht_product": (
        "(a, b) AS CASE WHEN abs(CAST(a AS DOUBLE) * CAST(b AS DOUBLE)) < 100000000000000000000 "
        "THEN TRY_CAST(a * b AS DECIMAL(28, 8)) END"
    ),
    "vht_quotient": (
        "(a, b) AS vht_of_units(CAST(sign(a) * sign(b) AS HUGEINT) * ((abs(vht_units(a)) * 200000000 "
        "+ abs(vht_units(b))) // nullif(2 * abs(vht_units(b)), 0)))"
    ),
    "vht_whole_quotient": ("(a, b) AS TRY_CAST(vht_units(a) // nullif(vht_units(b), 0) AS BIGINT)"),
    "vht_fraction": (
        r"(t, fill) AS rpad(regexp_extract(t, '\.(\d+)', 1), "
        r"CAST(greatest(3, length(regexp_extract(t, '\.(\d+)', 1))) AS INTEGER), fill)"
    ),
    "vht_offset": f"(t, fallback) AS coalesce(nullif(regexp_extract(t, '{_OFFSET}'), ''), fallback)",
    "vht_low_stamp": (
        "(t) AS CASE WHEN length(t) <= 10 THEN vht_low_date(t) || 'T00:00:00.000+14:00' "
        "ELSE substr(t, 1, 19) || '.' || vht_fraction(t, '0') || vht_offset(t, '+14:00') END"
    ),
    "vht_high_stamp": (
        "(t) AS CASE WHEN length(t) <= 10 THEN vht_high_date(t) || 'T23:59:59.999-12:00' "
        "ELSE substr(t, 1, 19) || '.' || vht_fraction(t, '9') || vht_offset(t, '-12:00') END"
    ),
    "vht_low_time": "(t) AS substr(t, 1, 8) || '.' || vht_fraction(t, '0')",
    "vht_high_time": "(t) AS substr(t, 1, 8) || '.' || vht_fraction(t, '9')",
    "vht_places": (
        r"(x) AS CAST(length(regexp_extract(x, '\.(\d+)', 1)) "
        r"- coalesce(TRY_CAST(regexp_extract(x, '[eE]\+?(-?\d+)', 1) AS INTEGER), 0) AS INTEGER)"
    ),
    "vht_low_decimal": "(x) AS round(CAST(x AS DOUBLE) - 0.5 * pow(10, -vht_places(x)), vht_places(x) + 1)",
    "vht_high_decimal": "(x) AS round(CAST(x AS DOUBLE) + 0.5 * pow(10, -vht_places(x)), vht_places(x) + 1)",
    "vht_padded": (
        "(items, beside) AS CASE WHEN len(beside) > coalesce(len(items), 0) "
        "THEN list_resize(coalesce(items, []), len(beside)) ELSE items END"
    ),
    "vht_reference_key": (
        "(r, type, urn) AS CASE WHEN starts_with(r, 'urn:uuid:') THEN CASE WHEN urn THEN substr(r, 10) END "
        "WHEN NOT starts_with(r, '#') THEN nullif(regexp_extract(r, '(?:^|/)' || type || "
        "'/([A-Za-z0-9.-]{1,64})(?:/_history/[A-Za-z0-9.-]{1,64})?$', 1), '') END"
    ),
}
_USES = {
    "vht_start": ("vht_point", "vht_low_date", "vht_zoned"),
    "vht_stop": ("vht_point", "vht_high_date", "vht_zoned"),
    "vht_date_equal": ("vht_stop", "vht_start"),
    "vht_date_before": ("vht_stop", "vht_start"),
    "vht_date_not_after": ("vht_stop", "vht_start"),
    "vht_quotient": ("vht_of_units", "vht_units"),
    "vht_whole_quotient": ("vht_units",),
    "vht_low_stamp": ("vht_low_date", "vht_fraction", "vht_offset"),
    "vht_high_stamp": ("vht_high_date", "vht_fraction", "vht_offset"),
    "vht_low_time": ("vht_fraction",),
    "vht_high_time": ("vht_fraction",),
    "vht_low_decimal": ("vht_places",),
    "vht_high_decimal": ("vht_places",),
}
"""The macros that the text of a macro calls."""


def prelude(*expressions: Expression) -> tuple[str, ...]:
    """The CREATE statements of every macro that ``expressions`` call, those that others build on first."""
    wanted: dict[str, None] = {}

    def want(name: str) -> None:
        for inner in _USES.get(name, ()):
            want(inner)
        wanted[name] = None

    for name in _called(expressions):
        want(name)
    return tuple(f"CREATE OR REPLACE TEMP MACRO {name}{_MACROS[name]};" for name in wanted)


def _called(expressions: tuple[Expression, ...]) -> Iterator[str]:
    """The macros of ``expressions`` in the order of their text; a shared node is looked at once."""
    seen: set[int] = set()
    pending = list(reversed(expressions))
    while pending:
        node = pending.pop()
        if id(node) not in seen:
            seen.add(id(node))
            pending += reversed(node.operands)
            if isinstance(node, Macro):
                yield node.function
