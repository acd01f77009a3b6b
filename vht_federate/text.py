"""Numbers and moments as people read them, for pages, cards and the command line."""

from datetime import UTC, datetime

__all__ = ["counted", "moment_text"]


def counted(number: int, noun: str) -> str:
    """``1 hospital``, ``2 hospitals``, ``1,000 hospitals``."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def moment_text(value: datetime | str | None) -> str:
    """A moment in UTC to the second."""
    if value is None:
        return "–"
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
