"""The privacy ledger of a node, recomputed from what its log says was begun."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from vht_federate.domain.budget import POPULATIONS, PrivacyEvent
from vht_federate.domain.permit import Permit
from vht_federate.evidence.entry import LogEntry
from vht_federate.evidence.events import QueryDrawn, RoundBegun
from vht_federate.evidence.finding import TOLERANCE, broken
from vht_federate.evidence.visit_record import VisitRecord, spent_under_permit

__all__ = ["Compose", "check_ceiling", "check_ledger", "same_epsilon"]

Compose = Callable[[Sequence[PrivacyEvent], float], Mapping[str, float]]


def same_epsilon(said: Mapping[str, float], computed: Mapping[str, float]) -> bool:
    """Do two statements of epsilon by population agree, up to rounding?"""
    return set(said) == set(POPULATIONS) and all(
        abs(said[population] - computed[population]) <= TOLERANCE for population in POPULATIONS
    )


def check_ledger(record: VisitRecord, compose: Compose) -> dict[str, float]:
    """Recompute one visit's ledger; epsilon by population of all that was drawn.

    Each round drew what the plan says and no more; reservation, running total and final account agree with it.
    Raises VerificationError VHT-VERIFY-LEDGER naming the entry.
    """
    if record.requested is None:
        return dict.fromkeys(POPULATIONS, 0.0)
    plan = record.requested.plan
    _check_reservation(record, compose)
    for entry, begun in record.begun.values():
        if begun.events != _planned(record, begun):
            raise record.error(entry, f"draws other events than the plan has for {begun.job} {begun.round}", "LEDGER")
    for entry, released in record.released.values():
        before = [
            event for earlier, begun in record.begun.values() if earlier.index < entry.index for event in begun.events
        ]
        if not same_epsilon(released.epsilon, compose(before, plan.delta)):
            raise record.error(entry, "states another epsilon than the events before it cost", "LEDGER")
        _check_delta(record, entry, released.delta)
    spent = compose(record.events(), plan.delta)
    if record.closed is not None:
        entry, closed = record.closed
        if Counter(closed.spent) != Counter(record.events()):
            raise record.error(entry, "accounts for other events than were begun", "LEDGER")
        if not same_epsilon(closed.epsilon, spent):
            raise record.error(entry, "states another epsilon than its events cost", "LEDGER")
        _check_delta(record, entry, closed.delta)
    return dict(spent)


def check_ceiling(
    file: str, permit: Permit, records: Iterable[VisitRecord], compose: Compose, queries: Iterable[QueryDrawn] = ()
) -> dict[str, float]:
    """All visits and queries of one node under ``permit`` together stay below its ceiling, at its delta.

    They are composed as if one patient had been in each: the log does not say who was in what. Nobody paid more.
    """
    events = (*spent_under_permit(records), *(event for query in queries for event in query.events))
    total = compose(events, permit.delta)
    if max(total.values()) > permit.epsilon + TOLERANCE:
        raise broken(
            file, f"spent epsilon {max(total.values()):.4f}; the permit's ceiling is {permit.epsilon:g}", "LEDGER"
        )
    return dict(total)


def _check_reservation(record: VisitRecord, compose: Compose) -> None:
    if record.reserved is None or record.requested is None:
        return
    entry, reserved = record.reserved
    plan = record.requested.plan
    if Counter(reserved.events) != Counter(plan.events()):
        raise record.error(entry, "reserves something else than the plan", "LEDGER")
    if not same_epsilon(reserved.epsilon_if_spent, compose(reserved.events, plan.delta)):
        raise record.error(entry, "states another epsilon than its events cost", "LEDGER")
    _check_delta(record, entry, reserved.delta)


def _check_delta(record: VisitRecord, entry: LogEntry, delta: float) -> None:
    if record.requested is not None and delta != record.requested.plan.delta:
        raise record.error(entry, "states its epsilon at another delta than the plan's", "LEDGER")


def _planned(record: VisitRecord, begun: RoundBegun) -> tuple[PrivacyEvent, ...] | None:
    try:
        return record.requested.plan.events_of(begun.job, begun.round) if record.requested else None
    except KeyError:
        return None
