"""Search parameters as SQL over a permit's view of the store, and pages of what they find.

What is not understood is refused, never ignored: an ignored filter would answer with more than was asked. Days are
compared as the permit sees them, shifted.
"""

# ruff: noqa: S608 - SQL is put together from our own column names and from quoted values.

import re
from calendar import monthrange
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import duckdb
import pyarrow as pa

from connector.duckdb_lockdown import quoted
from connector.fhir.rendering import ACT_CODE
from connector.fhir_api.documents import SEARCHES
from connector.fhir_api.limits import Limits
from connector.fhir_api.page_cursors import LASTS, Cursor, read_cursor, written
from connector.fhir_api.permit_view import PermitView, Resource, in_order
from connector.governance.element_rules import earliest_day
from connector.governance.public_codes import is_public
from vht_federate.errors import InputError

__all__ = ["Page", "Query", "find", "read_query"]

_LONGEST_VALUE = 4_000
_VALUES = 200  # of one parameter, joined by commas
_DATE = re.compile(
    r"(eq|ne|gt|lt|ge|le|sa|eb)?(\d{4})(?:-(\d\d)(?:-(\d\d)(?:T(\d\d):(\d\d)(?::(\d\d)(?:\.(\d{1,9}))?)?"
    r"(Z|[+-]\d\d:\d\d)?)?)?)?",
    re.ASCII,
)
_PARTS = ("year", "month")
_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")

_CLASSES = f"coalesce(class_system, '{ACT_CODE}')"  # as it is shown
# parameter -> columns: (system, code) of a token, and a further condition
_TOKENS = {
    ("Observation", "code"): ("code_system", "code", "part = 0"),
    ("Observation", "combo-code"): ("code_system", "code", "true"),
    ("Condition", "code"): ("system", "code", "true"),
    ("MedicationRequest", "code"): ("system", "code", "true"),
    ("Encounter", "class"): (_CLASSES, "class_code", f"({_CLASSES}, class_code) IN (SELECT (system, code) FROM told)"),
    ("Encounter", "type"): (
        "type_system",
        "type_code",
        "(type_system, type_code) IN (SELECT (system, code) FROM told)",
    ),
}
# parameter -> bounds of the date, or of the start and the end
_Bounds = tuple[str, str]
_STARTED, _ENDED = ("started", "started_until"), ("ended", "ended_until")


def _either(bounds: _Bounds, otherwise: _Bounds) -> _Bounds:
    """``bounds``, or ``otherwise`` where there are none."""
    known = f"{bounds[0]} IS NOT NULL"
    first, last = (f"CASE WHEN {known} THEN {a} ELSE {b} END" for a, b in zip(bounds, otherwise, strict=True))
    return first, last


_DATES: Mapping[tuple[str, str], tuple[_Bounds, _Bounds]] = {
    **{
        key: ((moment, f"{moment}_until"),) * 2
        for key, moment in {
            ("Observation", "date"): "effective",
            ("Condition", "onset-date"): "onset",
            ("Condition", "recorded-date"): "recorded",
            ("MedicationRequest", "authoredon"): "authored",
        }.items()
    },
    ("Encounter", "date"): (_either(_STARTED, _ENDED), _either(_ENDED, _STARTED)),
}


@dataclass(frozen=True)
class Query:
    """A search that was understood. ``starts``: the columns of dates that must be shown, or nothing is found by them;
    ``names``: the permit's names of patients that it asks for; ``asked``: its parameters, for links; ``ends``: when its
    pages do."""

    type: str
    conditions: tuple[str, ...]
    starts: tuple[_Bounds, ...]
    names: tuple[str, ...] | None
    ids: tuple[str, ...] | None
    count: int
    offset: int
    generation: int | None
    ends: datetime
    asked: tuple[tuple[str, str], ...]

    def link(self, base: str, generation: int, offset: int) -> str:
        cursor = written(Cursor(generation, offset, self.ends))
        return f"{base}/{self.type}?{urlencode([*self.asked, ('_page', cursor)])}"


@dataclass(frozen=True)
class Page:
    resources: list[Resource]
    total: int
    following: int | None  # offset


def read_query(resource_type: str, parameters: Sequence[tuple[str, str]], limits: Limits, now: datetime) -> Query:
    """Raises InputError VHT-INPUT-SEARCH, naming the parameter only where FHIR does; NotFoundError VHT-INPUT-GONE."""
    known = dict(SEARCHES[resource_type])
    conditions: list[str] = []
    starts: list[_Bounds] = []
    names: tuple[str, ...] | None = None
    ids: tuple[str, ...] | None = None
    plain: dict[str, str] = {}
    for name, value in parameters:
        if len(value) > _LONGEST_VALUE:
            raise _refused("a value is too long")
        if name == "_id":
            ids = _both(ids, _ids(value))
        elif name in ("patient", "subject", "patient:Patient", "subject:Patient") and resource_type != "Patient":
            names = _both(names, _ids(value.replace("Patient/", "")))
        elif name in known and known[name] == "token":
            conditions.append(_token(*_TOKENS[resource_type, name], value))
        elif name in known:
            start, end = _DATES[resource_type, name]
            conditions.append(_date(start, end, value))
            starts.append(start)
        elif name in ("_count", "_page", "_format", "_total") and name not in plain:
            plain[name] = value
        else:
            raise _refused("a search parameter is not one that this API has", hint="see /fhir/metadata")
    if plain.get("_format", "json") not in ("json", "application/json", "application/fhir+json"):
        raise _refused("answers come as JSON")
    cursor = read_cursor(plain["_page"], now) if "_page" in plain else None
    generation, offset, ends = (cursor.generation, cursor.offset, cursor.ends) if cursor else (None, 0, now + LASTS)
    asked = tuple((name, value) for name, value in parameters if name != "_page")
    count = _count(plain.get("_count"), limits)
    return Query(resource_type, tuple(conditions), tuple(starts), names, ids, count, offset, generation, ends, asked)


def find(permit_view: PermitView, connection: duckdb.DuckDBPyConnection, query: Query) -> Page:
    """One page of what ``query`` finds, in the permit's own order."""
    key = "subject" if query.type == "Patient" else "resource"
    if query.type == "Encounter" and query.conditions:
        _list_public_codes(permit_view, connection)
    shown = [_is_shown(start, permit_view.deidentifier.now) for start in query.starts]
    where = " AND ".join(f"({condition})" for condition in (*query.conditions, *shown)) or "true"
    if query.names is not None:
        where += f" AND name IN ({_listed(query.names)})"
    hits_sql = f"SELECT DISTINCT {key} AS key, name FROM ({permit_view.shown(query.type)}) WHERE {where}"
    if query.ids is not None:
        hits_sql = (
            f"SELECT * FROM ({hits_sql}) WHERE key IN ({_listed(_keys(permit_view, connection, query, hits_sql))})"
        )
    connection.execute(f"CREATE TEMP TABLE hit AS {hits_sql}")
    connection.execute(
        f"CREATE TEMP TABLE page AS SELECT key FROM hit ORDER BY {in_order('key')} "
        f"LIMIT {query.count} OFFSET {query.offset}"
    )
    [(total,)] = connection.execute("SELECT count(*) FROM hit").fetchall()
    resources = list(permit_view.chosen(connection, query.type)) if query.count else []
    following = query.offset + query.count
    return Page(resources, total, following if query.count and following < total else None)


def _list_public_codes(permit_view: PermitView, connection: duckdb.DuckDBPyConnection) -> None:
    """Table ``told`` (system, code): an Encounter's codes that are told. Nobody learns by search that others are there.

    Of the other types, the permit's own codes are all that is shown.
    """
    shown = permit_view.shown("Encounter")
    stored = connection.execute(
        f"SELECT {_CLASSES}, class_code FROM ({shown}) UNION SELECT type_system, type_code FROM ({shown})"
    ).fetchall()
    public = [
        (system, code) for system, code in stored if system and code and _is_public_code(permit_view, system, code)
    ]
    columns = {
        name: pa.array([row[position] for row in public], pa.string())
        for position, name in enumerate(("system", "code"))
    }
    connection.register("told", pa.table(columns))


def _is_public_code(permit_view: PermitView, system: str, code: str) -> bool:
    return is_public(system, code, permit_view.deidentifier.codes)


def _keys(permit_view: PermitView, connection: duckdb.DuckDBPyConnection, query: Query, hits_sql: str) -> list[str]:
    """The stored keys behind the asked ids: names cannot be turned back, so those of all hits are made."""
    wanted = set(query.ids or ())
    cursor = connection.execute(f"SELECT key FROM ({hits_sql})")
    keys: list[str] = []
    while wanted and (rows := cursor.fetchmany(10_000)):
        for (key,) in rows:
            name = permit_view.deidentifier.identifier(query.type, key)
            if name in wanted:
                wanted.discard(name)
                keys.append(key)
    return keys


def _listed(values: Sequence[str]) -> str:
    return ", ".join(map(quoted, values)) or "NULL"


def _both(held: tuple[str, ...] | None, more: tuple[str, ...]) -> tuple[str, ...]:
    return more if held is None else tuple(value for value in held if value in more)


def _ids(value: str) -> tuple[str, ...]:
    ids = tuple(value.split(","))
    if len(ids) > _VALUES or not all(_ID.fullmatch(resource_id) for resource_id in ids):
        raise _refused("an id is not one of FHIR's")
    return ids


def _token(system: str, code: str, further: str, value: str) -> str:
    parts = value.split(",")
    if len(parts) > _VALUES:
        raise _refused("too many codes at once")
    alternatives = []
    for part in parts:
        first, bar, second = part.partition("|")
        spelled = second if bar else first
        conditions = [f"{code} = {quoted(spelled)}"] if spelled else []
        if bar:
            conditions.append(f"{system} = {quoted(first)}" if first else f"{system} IS NULL")
        if not conditions:
            raise _refused("a code is empty")
        alternatives.append(" AND ".join(conditions))
    return f"{further} AND ({' OR '.join(f'({alternative})' for alternative in alternatives)})"


def _date(start: _Bounds, end: _Bounds, value: str) -> str:
    """A date parameter: the value stands for the interval that its precision leaves open (FHIR R4, 3.1.1.5.4)."""
    return " OR ".join(_dated(start, end, part) for part in value.split(",")[:_VALUES])


def _is_shown(start: _Bounds, now: date) -> str:
    """What is not told is not found: the same rule, on the same shifted day, as ``ElementRedaction`` has."""
    earliest = datetime.combine(earliest_day(now), datetime.min.time())
    return f"{_visible_interval(start)[0]} >= {(earliest - datetime(1970, 1, 1)) // timedelta(microseconds=1)}"


def _visible_interval(bounds: _Bounds) -> tuple[str, str]:
    """The first and the last microsecond of what is told of a stored moment: of a year or a month alone that, moved by
    its middle; of an exact one at 23:59:59Z the year, by the middle of what it may mean (``ElementRedaction.moment``).
    """
    column, until = bounds
    at = f"date_trunc('second', make_timestamp(epoch_us({column})))"
    is_year, is_month = f"month({column}) <> month({until})", f"month({column}) = month({until})"  # of exact ones NULL
    is_last = f"{until} IS NULL AND CAST({at} AS TIME) = TIME '23:59:59'"
    middle = (
        f"CASE WHEN {is_year} OR {until} IS NULL AND month({at}) = 12 AND day({at}) = 31 "
        f"THEN make_timestamp(year({at}), 7, 1, 0, 0, 0.0) "
        f"WHEN {is_month} OR CAST({at} AS DATE) = last_day({at}) "
        f"THEN make_timestamp(year({at}), month({at}), 15, 0, 0, 0.0) ELSE date_trunc('day', {at}) END"
    )

    def told(microsecond: str) -> str:
        year, month = (microsecond.format(part=part, moved=f"{middle} - to_microseconds(shift)") for part in _PARTS)
        exact = f"epoch_us({at}) - shift"
        return f"CASE WHEN {is_year} OR {is_last} THEN {year} WHEN {is_month} THEN {month} ELSE {exact} END"

    first = "epoch_us(date_trunc('{part}', {moved}))"
    return told(first), told("epoch_us(date_trunc('{part}', {moved}) + INTERVAL 1 {part}) - 1")


def _dated(start: _Bounds, end: _Bounds, value: str) -> str:
    prefix, low, high = _interval(value)
    first, last = _visible_interval(start)[0], _visible_interval(end)[1]
    rules: Mapping[str, str] = {
        "eq": f"{first} >= {low} AND {last} < {high}",
        "ne": f"NOT ({first} >= {low} AND {last} < {high})",
        "gt": f"{last} >= {high}",
        "sa": f"{first} >= {high}",
        "lt": f"{first} < {low}",
        "eb": f"{last} < {low}",
        "ge": f"{last} >= {low}",
        "le": f"{first} < {high}",
    }
    return f"({rules[prefix]})"


def _interval(value: str) -> tuple[str, int, int]:
    """Prefix, and [low, high) in microseconds since 1970; a time without an offset is UTC."""
    match = _DATE.fullmatch(value)
    if not match:
        raise _refused("a date is not one of FHIR's")
    prefix, year, month, day, hour, minute, second, fraction, zone = match.groups()
    try:
        low = datetime(int(year), int(month or 1), int(day or 1), int(hour or 0), int(minute or 0), int(second or 0))
        if zone and zone != "Z":
            sign = -1 if zone[0] == "-" else 1
            low -= sign * timedelta(hours=int(zone[1:3]), minutes=int(zone[4:6]))
        width = _width(int(year), month, day, hour, second)
        start = (low.replace(tzinfo=UTC) - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    except (ValueError, OverflowError) as error:
        raise _refused("a date is not one of FHIR's") from error
    if fraction:
        start += int(fraction[:6].ljust(6, "0"))
        return prefix or "eq", start, start + 1
    return prefix or "eq", start, start + width // timedelta(microseconds=1)


def _width(year: int, month: Any, day: Any, hour: Any, second: Any) -> timedelta:
    if second:
        return timedelta(seconds=1)
    if hour:
        return timedelta(minutes=1)
    if day:
        return timedelta(days=1)
    return timedelta(days=monthrange(year, int(month))[1] if month else 366 if monthrange(year, 2)[1] == 29 else 365)


def _count(value: str | None, limits: Limits) -> int:
    if value is None:
        return limits.page
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise _refused("_count is a number")
    return min(int(value), limits.page_max)


def _refused(message: str, hint: str = "") -> InputError:
    return InputError(message, code="VHT-INPUT-SEARCH", hint=hint)
