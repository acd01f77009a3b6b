"""Who acts on what becomes of a visit: an approved one is prepared, an ended one is cleared up behind."""

from typing import Protocol

__all__ = ["VisitChanges", "VisitListener"]


class VisitListener(Protocol):
    """Is told in the thread that made the change, which it must not keep for long.

    Of an approval after its step was committed; of an end when it is asked for, and once more where recovery enters it.
    """

    def approved(self, visit_id: str) -> None: ...

    def ended(self, visit_id: str, grace_s: float) -> None: ...


class VisitChanges:
    """Passes changes of visits on to the listeners, in the order in which these were added."""

    def __init__(self) -> None:
        self._listeners: list[VisitListener] = []

    def add(self, listener: VisitListener) -> None:
        self._listeners.append(listener)

    def approved(self, visit_id: str) -> None:
        for listener in self._listeners:
            listener.approved(visit_id)

    def ended(self, visit_id: str, grace_s: float = 0.0) -> None:
        """``grace_s``: how long the visit's enclave may still live."""
        for listener in self._listeners:
            listener.ended(visit_id, grace_s)
