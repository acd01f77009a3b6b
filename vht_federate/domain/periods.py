"""Periods of months and years as the law counts them, by the calendar (Regulation 1182/71, Article 3(2)(c)).

A year has 365 days or 366, so no number of days is a number of years.
"""

from calendar import monthrange
from datetime import UTC, datetime

__all__ = ["months_after"]


def months_after(moment: datetime, months: int) -> datetime:
    """The same day and time of day, UTC, ``months`` later; the last day of the month where it has no such day.

    Raises ValueError beyond the calendar's last year.
    """
    start = moment.astimezone(UTC)
    year, month = divmod(start.year * 12 + start.month - 1 + months, 12)
    if year > datetime.max.year:
        raise ValueError("this period ends beyond the calendar")
    return start.replace(year=year, month=month + 1, day=min(start.day, monthrange(year, month + 1)[1]))
