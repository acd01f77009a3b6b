"""How many requests of one data user a node works on at once.

What a data user signs is judged at the hospital's cost: an account of the plan, a count that takes its seconds. Whoever
has as many open as one may have is told to come back; so is everybody while the node works on as many as it does at
once. Nobody waits in a thread that others need.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from vht_federate.errors import UnavailableError

__all__ = ["OpenRequests"]


@dataclass
class OpenRequests:
    """At most ``each`` of one data user, ``together`` of all; ``seconds`` is when it is worth asking again.

    Safe for threads.
    """

    each: int
    together: int
    seconds: int
    code: str = "VHT-UNAVAILABLE-BUSY"
    _open: Counter[str] = field(default_factory=Counter, init=False, repr=False)
    _guard: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    @contextmanager
    def of(self, user: str) -> Iterator[None]:
        """One more of the data user with this key id. Raises UnavailableError ``code`` where that is one too many."""
        with self._guard:
            own, all_ = self._open[user], self._open.total()
            if own >= self.each or all_ >= self.together:
                whose = "of yours" if own >= self.each else "of others"
                raise UnavailableError(
                    f"this node is still at work on requests {whose}",
                    code=self.code,
                    hint=f"ask again in {self.seconds} seconds",
                    retry_after_s=self.seconds,
                )
            self._open[user] += 1
        try:
            yield
        finally:
            with self._guard:
                self._open[user] -= 1
                if not self._open[user]:
                    del self._open[user]
