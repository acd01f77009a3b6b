"""FHIR R4's primitive types (2.24.0.1): the JSON type of each, and how its values are spelled."""

import re
from calendar import monthrange
from datetime import datetime
from typing import Any

__all__ = ["is_spelled", "json_type"]

_YEAR = r"(?:[0-9](?:[0-9](?:[0-9][1-9]|[1-9]0)|[1-9]00)|[1-9]000)"
_MONTH, _DAY = r"(?:0[1-9]|1[0-2])", r"(?:0[1-9]|[12][0-9]|3[01])"
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:(?:[0-5][0-9]|60)(?:\.[0-9]+)?"
_ZONE = r"(?:Z|[+-](?:(?:0[0-9]|1[0-3]):[0-5][0-9]|14:00))"
_FULL_DATE = re.compile(r"([0-9]{4})-([0-9]{2})-([0-9]{2})")
_PATTERNS = {
    "base64Binary": r"\s*(?:[0-9a-zA-Z+/=]{4}\s*)+",
    "canonical": r"\S+",
    "code": r"\S+(?:\s\S+)*",
    "date": rf"{_YEAR}(?:-{_MONTH}(?:-{_DAY})?)?",
    "dateTime": rf"{_YEAR}(?:-{_MONTH}(?:-{_DAY}(?:T{_TIME}{_ZONE})?)?)?",
    "id": r"[A-Za-z0-9\-.]{1,64}",
    "instant": rf"{_YEAR}-{_MONTH}-{_DAY}T{_TIME}{_ZONE}",
    "oid": r"urn:oid:[0-2](?:\.(?:0|[1-9][0-9]*))+",
    "time": _TIME,
    "uri": r"\S+",
    "url": r"\S+",
    "uuid": r"urn:uuid:[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}",
    # no control characters but tab and line ends (2.24.0.1, string)
    **dict.fromkeys(("string", "markdown", "xhtml"), r"[^\x00-\x08\x0b\x0c\x0e-\x1f]+"),
}
_COMPILED = {name: re.compile(pattern) for name, pattern in _PATTERNS.items()}
_DATED = frozenset({"date", "dateTime", "instant"})
_NINES = str.maketrans("012345678", "999999999")
_USUAL_TIMES = frozenset(
    f"9999-99-99T99:99:99{fraction}{zone}"
    for fraction in ("", *(f".{'9' * digits}" for digits in range(1, 10)))
    for zone in ("Z", "+99:99", "-99:99")
)
_BOUNDS = {"integer": (-(2**31), 2**31 - 1), "positiveInt": (1, 2**31 - 1), "unsignedInt": (0, 2**31 - 1)}


def json_type(type_name: str) -> type | tuple[type, ...]:
    """What ``json.loads`` gives for a value of this primitive type; a boolean is no number."""
    if type_name == "boolean":
        return bool
    if type_name == "decimal":
        return (int, float)
    return int if type_name in _BOUNDS else str


def is_spelled(type_name: str, value: Any) -> bool:
    """Is ``value``, of the JSON type of this primitive type, one of its values? Dates are days of the calendar."""
    if type_name in _COMPILED:
        return _is_text_spelled(type_name, value)
    low, high = _BOUNDS.get(type_name, (None, None))
    return low is None or low <= value <= high


def _is_text_spelled(type_name: str, value: str) -> bool:
    if type_name in _DATED and type_name != "date" and _is_usual_time(value):
        return True
    if _COMPILED[type_name].fullmatch(value) is None:
        return False
    match = _FULL_DATE.match(value) if type_name in _DATED else None
    return match is None or int(match[3]) <= monthrange(int(match[1]), int(match[2]))[1]


def _is_usual_time(value: str) -> bool:
    """The quick way for nearly all: a time with a zone that Python knows too. It has no second 60, and more zones."""
    if value.translate(_NINES) not in _USUAL_TIMES:
        return False
    try:
        datetime.fromisoformat(value)
    except ValueError:
        return False
    return value[-1] == "Z" or value[-5:-3] < "14" or value[-5:] == "14:00"
