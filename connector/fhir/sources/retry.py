"""How often and how long a source is asked: backoff with full jitter, a server's Retry-After, one deadline for all."""

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from vht_federate.errors import UnavailableError

__all__ = ["OutOfPatience", "Retries", "RetryPolicy", "retry_after_s"]

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 60.0


def retry_after_s(text: str | None, now: datetime) -> float | None:
    """Seconds that a ``Retry-After`` asks for (RFC 9110, 10.2.3: seconds or a date); None where it says nothing."""
    if text is None:
        return None
    if text.strip().isascii() and text.strip().isdigit():
        return float(text)
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    return max(0.0, ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - now).total_seconds())


class OutOfPatience(UnavailableError):
    """The server failed, or put us off, too often in a row."""

    default_code = "VHT-UNAVAILABLE-SOURCE"


@dataclass
class RetryPolicy:
    """Time as a pull sees it. ``jitter`` draws from [0, 1)."""

    deadline_s: float
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    jitter: Callable[[], float] = random.SystemRandom().random
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def __post_init__(self) -> None:
        self._ends_at = self.clock() + self.deadline_s

    def check(self, ahead_s: float = 0.0) -> None:
        """Raises UnavailableError VHT-UNAVAILABLE-SOURCE-DEADLINE where ``ahead_s`` from now is too late."""
        if self.clock() + ahead_s > self._ends_at:
            raise UnavailableError(
                "the FHIR server was not done in time",
                code="VHT-UNAVAILABLE-SOURCE-DEADLINE",
                hint="run the same command again: it goes on where it stopped",
            )

    def pause(self, seconds: float) -> None:
        self.check(seconds)
        self.sleep(seconds)

    def backoff_s(self, failures: int) -> float:
        return self.jitter() * min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(failures, 20))


class Retries:
    """Failures in a row of one undertaking; progress makes it fresh."""

    def __init__(self, pace: RetryPolicy, attempts: int) -> None:
        self._pace, self._attempts, self._failures = pace, attempts, 0

    def refresh(self) -> None:
        self._failures = 0

    def again(self, why: str, wait_s: float | None = None) -> None:
        """Wait before the next try. Raises OutOfPatience when there were enough."""
        self._failures += 1
        if self._failures >= self._attempts:
            raise OutOfPatience(
                f"the FHIR server cannot be used: {why}",
                hint="run the same command again later: it goes on where it stopped",
            )
        backoff = self._pace.backoff_s(self._failures)
        self._pace.pause(backoff if wait_s is None else max(wait_s, backoff))
