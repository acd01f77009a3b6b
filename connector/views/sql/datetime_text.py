"""FHIR's dates and times as text: which of them exist."""

import re
from datetime import date, time

__all__ = ["is_stamp"]

_STAMP = re.compile(
    r"(?P<date>\d{4}(-\d{2}(-\d{2})?)?)(?P<time>T\d{2}:\d{2}:\d{2}(\.\d{1,9})?(Z|[+-](0\d|1[0-4]):[0-5]\d)?)?"
)
_TIME = re.compile(r"\d{2}:\d{2}:\d{2}(\.\d{1,9})?")


def is_stamp(text: str, type_name: str) -> bool:
    """True of a date, dateTime, instant or time that the calendar and the clock have; dates may be partial."""
    if type_name == "time":
        return bool(_TIME.fullmatch(text)) and _exists(time, text[:8])
    match = _STAMP.fullmatch(text)
    if match is None or (type_name == "date" and match["time"]) or (match["time"] and len(match["date"]) != 10):
        return False
    whole = match["date"] + "-01-01"[len(match["date"]) - 4 :] if len(match["date"]) < 10 else match["date"]
    return _exists(date, whole) and (not match["time"] or _exists(time, match["time"][1:9]))


def _exists(kind: type[date] | type[time], text: str) -> bool:
    try:
        kind.fromisoformat(text)
    except ValueError:
        return False
    return True
