"""Ends of visits that were asked for and are not entered yet: the gate refuses from the moment of asking.

In memory only. Such a mark refuses more than the log says and allows nothing, so no entry has to come before it; a
process that dies with one ends the visit anyway.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from connector.governance.operator_accounts import Actor
from vht_federate.evidence.events import PermitRevokedSeen

__all__ = ["Ending", "Endings"]


@dataclass(frozen=True)
class Ending:
    """The ``state`` that a visit is to end in, why, and who decided it; ``seen`` is logged before the end.

    ``grace_s`` is how long the visit's enclave may still live.
    """

    state: str
    code: str | None
    reason: str
    actor: Actor | None = None
    seen: PermitRevokedSeen | None = None
    grace_s: float = 0.0


class Endings:
    """The marks of one node, by visit. Safe for threads."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._marks: dict[str, Ending] = {}
        self._at_work: dict[str, int] = {}

    def of(self, visit_id: str) -> Ending | None:
        """The end that this visit is about to come to."""
        with self._guard:
            return self._marks.get(visit_id)

    def left(self) -> list[tuple[str, Ending]]:
        """Those that could not be entered, and that nobody is at."""
        with self._guard:
            return [(visit, ending) for visit, ending in self._marks.items() if visit not in self._at_work]

    @contextmanager
    def asked(self, visit_id: str, ending: Ending) -> Iterator[Ending]:
        """While the end is entered: the one that somebody is at already, else ``ending``.

        The mark goes when the block ends well. It stays when the block raises, until somebody asks again.
        """
        with self._guard:
            if visit_id not in self._at_work:
                self._marks[visit_id] = ending
            ending = self._marks.setdefault(visit_id, ending)
            self._at_work[visit_id] = self._at_work.get(visit_id, 0) + 1
        entered = False
        try:
            yield ending
            entered = True
        finally:
            with self._guard:
                self._at_work[visit_id] -= 1
                if not self._at_work[visit_id]:
                    del self._at_work[visit_id]
                if entered:
                    self._marks.pop(visit_id, None)
