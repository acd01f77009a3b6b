"""FHIR's dates and times as text: which of them exist."""

import re
from datetime import date

__all__ = ["is_stamp"]

_CLOCK = r"([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d{1,9})?"  # second 60 is a leap second, legal in FHIR R4
_TIME = re.compile(_CLOCK, re.ASCII)
_STAMP = re.compile(
    rf"(?P<date>\d{{4}}(-\d{{2}}(-\d{{2}})?)?)(?P<time>T{_CLOCK}(Z|[+-](0\d|1[0-3]):[0-5]\d|[+-]14:00)?)?", re.ASCII
)


def is_stamp(text: str, type_name: str) -> bool:
    """True of a date, dateTime, instant or time that the calendar and the clock have; dates may be partial."""
    if type_name == "time":
        return bool(_TIME.fullmatch(text))
    match = _STAMP.fullmatch(text)
    if match is None or (type_name == "date" and match["time"]) or (match["time"] and len(match["date"]) != 10):
        return False
    whole = match["date"] + "-01-01"[len(match["date"]) - 4 :] if len(match["date"]) < 10 else match["date"]
    try:
        date.fromisoformat(whole)
    except ValueError:
        return False
    return True
