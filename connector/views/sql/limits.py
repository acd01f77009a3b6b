"""How long a view may run: one deadline for all that is done for it, kept by a thread beside the query."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import duckdb

from vht_federate.errors import ViewError

__all__ = ["TIME_LIMIT_S", "TimeLimit", "over_time"]

TIME_LIMIT_S = 600.0
AGAIN_S = 0.05  # an interrupt that falls between two batches is heeded by neither


def over_time() -> ViewError:
    return ViewError(
        "the view takes longer than it may",
        code="VHT-VIEW-TIME",
        hint="fewer siblings that multiply, a where that narrows, or more time (--time-limit)",
    )


class TimeLimit:
    """``seconds`` from now; None: no limit."""

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._ends_at = None if seconds is None else clock() + seconds

    def check(self) -> None:
        """Raises ViewError VHT-VIEW-TIME once the time is over."""
        if self._ends_at is not None and self._clock() > self._ends_at:
            raise over_time()

    @contextmanager
    def on(self, connection: duckdb.DuckDBPyConnection) -> Iterator[None]:
        """What still runs on ``connection`` when the time is over is interrupted; DuckDB says so."""
        if self._ends_at is None:
            yield
            return
        self.check()
        done, left = threading.Event(), self._ends_at - self._clock()

        def watch() -> None:
            over = not done.wait(left)
            while over and not done.is_set():
                connection.interrupt()
                done.wait(AGAIN_S)

        watcher = threading.Thread(target=watch, name="vht-view-limit", daemon=True)
        watcher.start()
        try:
            yield
        finally:
            done.set()
            watcher.join()
