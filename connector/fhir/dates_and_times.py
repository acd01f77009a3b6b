"""Dates and times of FHIR R4 (datatypes: date, dateTime, instant), in UTC and to the microsecond.

A dateTime of a year or a month alone leaves open when: it is read as its ``Bounds``, the first moment that it may mean
and the last one. Whoever asks takes the bound that errs on the safe side: an outcome, a death or a record's day is as
early as it may be, an input as late as it may be. A day is a day: records begin with days, so it is no interval here;
without a time it is read in UTC.

Second 60 is legal in R4, for a leap second; no clock that we compare with has it. It is read as the last microsecond of
the second before: of the same day, before the next one, and in order with all other whole seconds.
"""

import re
from calendar import monthrange
from datetime import UTC, date, datetime
from typing import Any

from connector.fhir.typed_elements import Quarantine, text

__all__ = ["Bounds", "birth_date", "instant", "moment", "period_start"]

Node = dict[str, Any]
Bounds = tuple[datetime, datetime | None]  # the first moment; the last one, None where it is the same

_DATE = re.compile(r"([0-9]{4})(?:-([0-9]{2})(?:-([0-9]{2}))?)?")
_TIME = r"T(?:[01][0-9]|2[0-3]):[0-5][0-9]:(?:[0-5][0-9]|60)"
_ZONE = r"(?:Z|[+-](?:(?:0[0-9]|1[0-3]):[0-5][0-9]|14:00))"
_INSTANT = re.compile(rf"([0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}{_TIME})(\.[0-9]+)?({_ZONE})")
_LEAP, _BEFORE_IT = ":60", ":59"


def birth_date(node: Node, key: str, where: str) -> tuple[date | None, bool | None]:
    """A FHIR date, and whether it is partial; of a year or a month alone, the middle."""
    value = text(node, key, where)
    if value is None:
        return None, None
    path = f"{where}.{key}"
    year, month, day = _parts(value, path)
    return _date(year, month or 7, day or (15 if month else 1), path), day is None


def moment(node: Node, key: str, where: str) -> Bounds | None:
    """A FHIR dateTime."""
    value = text(node, key, where)
    if value is None:
        return None
    path = f"{where}.{key}"
    if len(value) > len("2020-12-31"):
        return _instant(value, path), None
    year, month, day = _parts(value, path)
    first = _date(year, month or 1, day or 1, path)
    if day is not None:
        return _at(first), None
    last = date(year, month or 12, monthrange(year, month or 12)[1])
    return _at(first), _at(last).replace(hour=23, minute=59, second=59, microsecond=999_999)


def instant(node: Node, key: str, where: str) -> datetime | None:
    """A FHIR instant."""
    value = text(node, key, where)
    return None if value is None else _instant(value, f"{where}.{key}")


def period_start(period: Node | None, where: str) -> Bounds | None:
    return moment(period, "start", where) if period else None


def _at(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


def _instant(value: str, path: str) -> datetime:
    match = _INSTANT.fullmatch(value)
    if not match:
        raise Quarantine("format", path)
    seconds, _, zone = match.groups()
    if seconds.endswith(_LEAP):
        value = f"{seconds.removesuffix(_LEAP)}{_BEFORE_IT}.999999{zone}"
    try:
        return datetime.fromisoformat(value).astimezone(UTC)
    except (ValueError, OverflowError):
        raise Quarantine("format", path) from None


def _parts(value: str, path: str) -> tuple[int, int | None, int | None]:
    match = _DATE.fullmatch(value)
    if not match:
        raise Quarantine("format", path)
    year, month, day = match.groups()
    return int(year), int(month) if month else None, int(day) if day else None


def _date(year: int, month: int, day: int, path: str) -> date:
    try:
        return date(year, month, day)
    except ValueError:
        raise Quarantine("format", path) from None
