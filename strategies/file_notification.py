"""Waking another process through the time of change of a file."""

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["FileNotification"]


@dataclass(frozen=True)
class FileNotification:
    """A file whose time of change says that something waits: cheaper to look at than an API to ask."""

    path: Path
    look_s: float = 0.05

    def notify(self) -> None:
        self.path.touch()

    def last(self) -> int:
        try:
            return self.path.stat().st_mtime_ns
        except FileNotFoundError:
            return 0

    def quiet_s(self) -> float:
        """Seconds since it was last touched."""
        return time.time() - self.last() / 1e9

    async def wait(self, seen: int, timeout_s: float) -> None:
        """Return when it was touched after ``seen``, at the latest after ``timeout_s``."""
        end = time.monotonic() + timeout_s
        while self.last() == seen and time.monotonic() < end:
            await asyncio.sleep(self.look_s)

    def wait_here(self, seen: int, timeout_s: float) -> None:
        """The same for code that is not asynchronous."""
        end = time.monotonic() + timeout_s
        while self.last() == seen and time.monotonic() < end:
            time.sleep(self.look_s)
