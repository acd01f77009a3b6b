"""Steps of the governance: writing transactions whose entries stand in the evidence log before they hold.

The last act of a step before its commit is the log entry. Where the commit then fails (a full disk takes the short line
and not the transaction), the log says what the database does not, as after a crash. No further step is admitted before
the database has followed the log again.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy.orm import Session

from connector.store.database import Database
from vht_federate.evidence.events import Event
from vht_federate.evidence.log import EvidenceLog, LogEntry

__all__ = ["Step", "Steps"]

log = logging.getLogger("vht.node.steps")


@dataclass
class Step:
    """One transaction. What is logged with ``record`` holds, whether or not the commit comes through."""

    session: Session
    evidence: EvidenceLog
    logged: bool = False

    def record(self, event: Event, *, permit_id: str | None = None, visit: str | None = None) -> LogEntry:
        entry = self.evidence.record(event, permit_id=permit_id, visit=visit)
        self.logged = True
        return entry


class Steps:
    """All steps of one node, one at a time (``guard``). ``recover`` enters what only the log holds."""

    def __init__(self, database: Database, evidence: EvidenceLog, recover: Callable[[], object]) -> None:
        self.database, self.evidence = database, evidence
        self.guard = threading.RLock()
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
