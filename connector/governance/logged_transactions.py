"""Steps of the governance: writing transactions whose entries stand in the evidence log before they hold.

The last act of a step before its commit is the log entry. Where the commit then fails (a full disk takes the short line
and not the transaction), the log says what the database does not, as after a crash. No further step is admitted before
the database has followed the log again.

What takes long is computed before the step, on a picture of the database, and holds if the step finds the same picture
(``step_after``): nobody who has something to stop waits for somebody else's account.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from sqlalchemy.orm import Session

from connector.store.database import Database
from vht_federate.errors import UnavailableError
from vht_federate.evidence.events import Event
from vht_federate.evidence.log import EvidenceLog, LogEntry

__all__ = ["Step", "Steps"]

log = logging.getLogger("vht.node.steps")
ATTEMPTS = 5
Priced = TypeVar("Priced")


@dataclass
class Step:
    """One transaction. What is logged with ``record`` holds, whether or not the commit comes through."""

    session: Session
    evidence: EvidenceLog
    logged: bool = False

    def record(self, event: Event, *, permit_id: str | None = None, visit: str | None = None) -> LogEntry:
        """Raises what ``EvidenceLog.record`` does; the entry may stand by then, as where its head cannot be kept."""
        entries = len(self.evidence)
        try:
            return self.evidence.record(event, permit_id=permit_id, visit=visit)
        finally:
            self.logged = self.logged or len(self.evidence) > entries


class Steps:
    """All steps of one node, one at a time (``guard``). ``recover`` enters what only the log holds."""

    def __init__(self, database: Database, evidence: EvidenceLog, recover: Callable[[], object]) -> None:
        self.database, self.evidence = database, evidence
        self.guard = threading.RLock()
        self._queue = threading.Lock()  # of steps that were priced: one of them at a time stands before the guard
        self._recover = recover
        self._behind = False

    @contextmanager
    def step(self) -> Iterator[Step]:
        """A writing transaction under ``guard``; not to be nested.

        Raises as ``Database.write`` does. What was logged by then has happened all the same, and is entered before the
        next step begins.
        """
        with self.guard:
            self.catch_up()
            step: Step | None = None
            try:
                with self.database.write() as session:
                    step = Step(session, self.evidence)
                    yield step
            except BaseException:
                if step is not None and step.logged:
                    self._behind = True
                    log.exception("a logged step could not be committed")
                raise

    @contextmanager
    def step_after(
        self, price: Callable[[Session], Priced], version: Callable[[Session], object]
    ) -> Iterator[tuple[Step, Priced]]:
        """A step whose costly part, ``price``, is computed before it begins, without ``guard``.

        It is computed again where ``version`` says that the database changed meanwhile. Raises what ``price`` raises,
        and UnavailableError VHT-UNAVAILABLE-LEDGER where the database changes faster than that.
        """
        for _ in range(ATTEMPTS):
            self.catch_up()
            with self.database.read() as session:
                priced_at = version(session)
                priced = price(session)
            with self._queue, self.step() as step:
                if version(step.session) == priced_at:
                    yield step, priced
                    return
        raise UnavailableError(
            "the node's budget changed again and again while this was judged",
            code="VHT-UNAVAILABLE-LEDGER",
            hint="ask again in 15 seconds",
            retry_after_s=15,
        )

    def catch_up(self) -> None:
        """Let the database follow the log, if it fell behind. Raises as ``step`` does."""
        with self.guard:
            if not self._behind:
                return
            self.recover()
            log.warning("the database has followed the evidence log")

    def recover(self) -> None:
        """Let the database follow the log, whether or not it is known to have fallen behind."""
        with self.guard:
            self._recover()
            self._behind = False
