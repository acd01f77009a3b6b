"""Wrong passwords make the next attempt wait; they lock nobody out.

An attempt under an account's name from an address waits twice as long for each failure of the two before, and an
address that fails under many names waits too. It waits without a thread, and is judged whatever others tried: the right
password opens a session after the wait, from another address at once. The waiting attempts of one kind are bounded.
"""

import asyncio
import threading
import time
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from vht_federate.errors import UnavailableError

__all__ = ["LogInDelays"]

FREE = 3  # failures
FIRST_S = 0.5
LONGEST_S = 15.0
REMEMBERED_S = 900.0
NAMES = 10  # failures of an address count one tenth, under whatever name
WAITING = 20
KEYS = 10_000
_Key = tuple[str | None, str]


class LogInDelays:
    """Delays of one node. ``pause`` waits. Safe for threads."""

    def __init__(
        self, pause: Callable[[float], Awaitable[None]] = asyncio.sleep, timer: Callable[[], float] = time.monotonic
    ) -> None:
        self._pause, self._timer = pause, timer
        self._failures: OrderedDict[_Key, deque[float]] = OrderedDict()
        self._waiting: Counter[_Key] = Counter()
        self._guard = threading.Lock()

    @asynccontextmanager
    async def attempt(self, name: str, address: str) -> AsyncIterator[None]:
        """Begins when it is the attempt's turn. Raises UnavailableError VHT-UNAVAILABLE-LOGIN where many wait."""
        key = name[:100], address
        with self._guard:
            if self._waiting[key] >= WAITING:
                raise UnavailableError(
                    "many attempts to log in under this name wait already",
                    code="VHT-UNAVAILABLE-LOGIN",
                    hint=f"try again in {LONGEST_S:g} seconds, or use a link of 'vht node console NODE'",
                    retry_after_s=int(LONGEST_S),
                )
            self._waiting[key] += 1
        try:
            await self._pause(self.seconds(name, address))
            yield
        finally:
            with self._guard:
                self._waiting[key] -= 1
                if not self._waiting[key]:
                    del self._waiting[key]

    def seconds(self, name: str, address: str) -> float:
        """How long the next attempt waits."""
        with self._guard:
            failures = max(self._recent((name[:100], address)), self._recent((None, address)) // NAMES)
        return 0.0 if failures < FREE else min(LONGEST_S, FIRST_S * 2.0 ** min(failures - FREE, 10))

    def failed(self, name: str, address: str) -> None:
        with self._guard:
            for key in ((name[:100], address), (None, address)):
                self._failures.setdefault(key, deque(maxlen=1000)).append(self._timer())
                self._failures.move_to_end(key)
            while len(self._failures) > KEYS:
                self._failures.popitem(last=False)

    def succeeded(self, name: str, address: str) -> None:
        with self._guard:
            self._failures.pop((name[:100], address), None)

    def _recent(self, key: _Key) -> int:
        failures = self._failures.get(key, deque())
        while failures and failures[0] < self._timer() - REMEMBERED_S:
            failures.popleft()
        return len(failures)
