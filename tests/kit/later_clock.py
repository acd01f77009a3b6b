"""The machine's clock, some time ahead."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

__all__ = ["Later"]


@dataclass
class Later:
    """``Later()()`` is now, plus ``ahead``, which may be moved."""

    ahead: timedelta = field(default=timedelta(0))

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead
