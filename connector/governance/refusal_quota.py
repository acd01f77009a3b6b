"""How many refusals of strangers the evidence log takes: each is signed and kept for ever, and asking is free.

Whoever has no new request signed by a data user of the permit is a stranger; that includes senders of published
requests. The first ``LOGGED`` of an hour stand in the log one by one; the rest are counted by code, and one entry
tells their number when the hour is over. What the sender is told is the same for all.
"""

import threading
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta

from vht_federate.evidence.events import PermitChecked, RefusalsCounted
from vht_federate.evidence.log import EvidenceLog

__all__ = ["StrangersRefused"]

LOGGED = 60
WINDOW = timedelta(hours=1)


class StrangersRefused:
    """The refusals of strangers at one node. Safe for threads."""

    def __init__(self, evidence: EvidenceLog, clock: Callable[[], datetime]) -> None:
        self._evidence, self._clock = evidence, clock
        self._guard = threading.Lock()
        self._since: datetime | None = None
        self._logged = 0
        self._counted: Counter[str] = Counter()

    def log(self, refused: PermitChecked) -> bool:
        """Log one, or only count it: False."""
        with self._guard:
            now = self._clock()
            if self._since is None or not self._since <= now < self._since + WINDOW:
                self._tell(now)
                self._since, self._logged = now, 0
            if self._logged >= LOGGED:
                self._counted[str(refused.code)] += 1
                return False
            self._logged += 1
        self._evidence.record(refused, permit_id=refused.permit_id)
        return True

    def settle(self, *, closing: bool = False) -> None:
        """Tell what was only counted, once its hour is over or the node closes."""
        with self._guard:
            now = self._clock()
            if self._since is not None and (closing or now >= self._since + WINDOW):
                self._tell(now)

    def _tell(self, now: datetime) -> None:
        if self._since is None or not self._counted:
            return
        counted = RefusalsCounted(
            since=self._since.isoformat(),
            until=now.isoformat(),
            refused=self._counted.total(),
            codes=dict(sorted(self._counted.items())),
        )
        self._evidence.record(counted)
        self._counted.clear()
