"""How many refusals the evidence log takes: each is signed and kept for ever, and asking is free.

Whoever has no new request signed by a data user of the permit is a stranger; that includes senders of published
requests. The first ``LOGGED`` of an hour, of all strangers together and of each data user, stand in the log one by one;
so does each signed request once for each reason of refusal. The rest are counted by code, and one entry says their
number when the hour is over. What the sender is told is the same for all.
"""

import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from datetime import datetime, timedelta

from vht_federate.evidence.events import PermitChecked, RefusalsCounted
from vht_federate.evidence.log import EvidenceLog

__all__ = ["RefusalQuota"]

LOGGED = 60
REMEMBERED = 10_000
WINDOW = timedelta(hours=1)
_STRANGERS = ""


class RefusalQuota:
    """The refusals of one node. Safe for threads: counts under its guard, and lets go of it before it logs.

    To log is to wait for the database, whose writer may be somebody who counts.
    """

    def __init__(self, evidence: EvidenceLog, clock: Callable[[], datetime]) -> None:
        self._evidence, self._clock = evidence, clock
        self._guard = threading.Lock()
        self._since: datetime | None = None
        self._logged: Counter[str] = Counter()  # by data user
        self._counted: Counter[str] = Counter()  # by code
        self._known: OrderedDict[tuple[str, str], None] = OrderedDict()

    def log(self, refused: PermitChecked, user_kid: str | None = None) -> bool:
        """Log a refusal of a data user's request, or of a stranger's (None), or only count it: False."""
        sender, counted = user_kid or _STRANGERS, None
        with self._guard:
            now = self._clock()
            if self._since is None or not self._since <= now < self._since + WINDOW:
                counted = self._taken(now)
                self._since = now
                self._logged.clear()
            one_by_one = self._logged[sender] < LOGGED and not self._repeated(refused)
            if one_by_one:
                self._logged[sender] += 1
            else:
                self._counted[str(refused.code)] += 1
        if counted is not None:
            self._evidence.record(counted)
        if one_by_one:
            self._evidence.record(refused, permit_id=refused.permit_id)
        return one_by_one

    def settle(self, *, closing: bool = False) -> None:
        """Log what was only counted, once its hour is over or the node closes."""
        with self._guard:
            now = self._clock()
            over = self._since is not None and (closing or now >= self._since + WINDOW)
            counted = self._taken(now) if over else None
        if counted is not None:
            self._evidence.record(counted)

    def _repeated(self, refused: PermitChecked) -> bool:
        if refused.request_digest is None:
            return False
        key = refused.request_digest, str(refused.code)
        repeated = key in self._known
        self._known[key] = None
        self._known.move_to_end(key)
        if len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return repeated

    def _taken(self, now: datetime) -> RefusalsCounted | None:
        """What was counted, to be logged once ``_guard`` is let go. A log that cannot take it takes nothing more."""
        if self._since is None or not self._counted:
            return None
        counted = RefusalsCounted(
            since=self._since.isoformat(),
            until=now.isoformat(),
            refused=self._counted.total(),
            codes=dict(sorted(self._counted.items())),
        )
        self._counted.clear()
        return counted
