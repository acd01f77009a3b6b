"""The entries of one visit in their legal order, folded into one record.

    visit.requested -> permit.checked (accepted) -> visit.approved -> budget.reserved -> cohort.built
        -> enclave.started -> (round.begun -> round.released)* -> visit.closed

``visit.rejected`` may stand for ``visit.closed``; refusals may stand anywhere after the request; a release may be
acknowledged after the first round, also once the visit is closed. Nothing begins or leaves after
``permit.revoked-seen`` or the visit's end. What happens under the permit outside of visits has records of its own:
questions (``query_record``) and programs of the hospital (``client_record``). An unknown kind is an error: an auditor
guesses nothing.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import AwareDatetime, TypeAdapter, ValidationError

from vht_federate.domain.budget import PrivacyEvent
from vht_federate.evidence.client_record import FHIR_KINDS
from vht_federate.evidence.entry import LogEntry
from vht_federate.evidence.events import (
    BudgetReserved,
    CohortBuilt,
    EnclaveStarted,
    Event,
    FeasibilityAnswered,
    PermitAccepted,
    PermitChecked,
    PermitRevokedSeen,
    QueryDrawn,
    ReleaseAcknowledged,
    RoundBegun,
    RoundRefused,
    RoundReleased,
    VisitApproved,
    VisitClosed,
    VisitRejected,
    VisitRequested,
)
from vht_federate.evidence.finding import broken
from vht_federate.evidence.node_log import NodeLog

__all__ = [
    "VisitRecord",
    "spent_under_permit",
    "visit_records",
]

_TIME = TypeAdapter(AwareDatetime)


E = TypeVar("E", bound=Event)


@dataclass
class VisitRecord:
    """What one node's log says of one visit. Keys of ``begun`` and ``released`` are (job, round)."""

    log: NodeLog
    visit: str
    requested: VisitRequested | None = None
    accepted: PermitAccepted | None = None
    approved: bool = False
    reserved: tuple[LogEntry, BudgetReserved] | None = None
    started: tuple[LogEntry, EnclaveStarted] | None = None
    begun: dict[tuple[str, int], tuple[LogEntry, RoundBegun]] = field(default_factory=dict)
    released: dict[tuple[str, int], tuple[LogEntry, RoundReleased]] = field(default_factory=dict)
    acknowledged: list[tuple[LogEntry, ReleaseAcknowledged]] = field(default_factory=list)
    built: CohortBuilt | None = None
    closed: tuple[LogEntry, VisitClosed] | None = None
    rejected: bool = False
    revoked_seen: LogEntry | None = None

    def events(self) -> tuple[PrivacyEvent, ...]:
        """All that was drawn, in order."""
        return tuple(event for _, begun in self.begun.values() for event in begun.events)

    def serials(self) -> tuple[int, ...]:
        """Of every status list that a decision relied on."""
        checked = (self.accepted.status_serial,) if self.accepted else ()
        begun = tuple(event.status_serial for _, event in self.begun.values())
        return checked + begun + tuple(event.status_serial for _, event in self.released.values())

    def add(self, entry: LogEntry) -> None:
        """Raises VerificationError VHT-VERIFY-ORDER for an entry that may not stand here."""
        step = _STEPS.get(entry.kind)
        if step is None:
            raise self.error(entry, f"is of an unknown kind {entry.kind!r}")
        if self.requested is None and entry.kind != VisitRequested.entry_kind:
            raise self.error(entry, f"{entry.kind} comes before its visit was requested")
        step(self, entry)

    def error(self, entry: LogEntry, what: str, code: str = "ORDER") -> Exception:
        return broken(self.log.place(entry), what, code)

    def _read(self, entry: LogEntry, event: type[E]) -> E:
        try:
            return event.read(entry.body)
        except ValidationError as error:
            places = ", ".join(sorted({".".join(map(str, item["loc"])) for item in error.errors()}))
            raise self.error(entry, f"{entry.kind} lacks or garbles: {places}") from error

    def _require(self, entry: LogEntry, holds: bool, what: str) -> None:
        if not holds:
            raise self.error(entry, f"{entry.kind} {what}")

    def _ended(self) -> bool:
        return self.closed is not None or self.rejected

    # --- one step per kind of entry -------------------------------------------------------------------------------

    def _on_requested(self, entry: LogEntry) -> None:
        self._require(entry, self.requested is None, "stands twice")
        self.requested = self._read(entry, VisitRequested)

    def _on_checked(self, entry: LogEntry) -> None:
        body = self._read(entry, PermitChecked)
        self._require(entry, body.outcome in ("accepted", "refused"), "has an unknown outcome")
        if body.outcome == "accepted":
            accepted = self._read(entry, PermitAccepted)
            self._require(entry, not self._ended(), "accepts a visit that had ended")
            same = self.requested is not None and accepted.request_digest == self.requested.request_digest
            self._require(entry, same, "accepts another request than the one that was made")
            self._require(entry, accepted.permit_id == entry.permit_id, "accepts under another permit")
            self.accepted = accepted

    def _on_approved(self, entry: LogEntry) -> None:
        self._require(entry, self.accepted is not None, "comes before the permit was checked")
        self._require(entry, not self.begun and not self._ended() and not self.revoked_seen, "comes too late")
        digest, requested = entry.body.get("digest"), self.requested
        self._require(
            entry, requested is not None and digest == requested.component.digest, "approves another component"
        )
        self._require(entry, bool(entry.body.get("operator")), "names no operator")
        self.approved = True

    def _on_reserved(self, entry: LogEntry) -> None:
        self._require(entry, self.approved, "comes before an operator approved")
        self._require(entry, not self.begun and not self._ended() and not self.revoked_seen, "comes too late")
        self.reserved = entry, self._read(entry, BudgetReserved)

    def _on_built(self, entry: LogEntry) -> None:
        self._require(entry, self.reserved is not None, "comes before a budget was reserved")
        body = self._read(entry, CohortBuilt)
        self._require(entry, body.minimum_cohort_met, "has fewer patients than the permit's minimum")
        self._require(entry, not self.begun, "comes too late")
        self.built = body

    def _on_started(self, entry: LogEntry) -> None:
        self._require(entry, self.built is not None, "comes before its cohort was built")
        body, requested = self._read(entry, EnclaveStarted), self.requested
        same = requested is not None and body.component_digest == requested.component.digest
        self._require(entry, same, "runs another component")
        self.started = entry, body

    def _on_begun(self, entry: LogEntry) -> None:
        body = self._read(entry, RoundBegun)
        self._require(entry, self.started is not None, "comes before its enclave started")
        self._require(entry, self.revoked_seen is None, "comes after the permit was seen revoked")
        self._require(entry, not self._ended(), "comes after the visit's end")
        self._require(entry, (body.job, body.round) not in self.begun, f"draws {body.job} {body.round} twice")
        reserved = self.reserved[1].dataset if self.reserved else None
        self._require(entry, body.dataset == reserved, "draws on another dataset than the one reserved")
        self.begun[body.job, body.round] = entry, body

    def _on_released(self, entry: LogEntry) -> None:
        body = self._read(entry, RoundReleased)
        call = body.job, body.round
        self._require(entry, call in self.begun, f"of {body.job} {body.round} has no round.begun")
        self._require(entry, call not in self.released, f"of {body.job} {body.round} stands twice")
        self._require(entry, self.revoked_seen is None, "comes after the permit was seen revoked")
        self._require(entry, not self._ended(), "comes after the visit's end")
        self.released[call] = entry, body

    def _on_acknowledged(self, entry: LogEntry) -> None:
        self._require(entry, bool(self.begun), "comes before any round")
        self._require(entry, self.revoked_seen is None, "comes after the permit was seen revoked")
        self.acknowledged.append((entry, self._read(entry, ReleaseAcknowledged)))

    def _on_closed(self, entry: LogEntry) -> None:
        self._require(entry, not self._ended(), "ends a visit that had ended")
        self.closed = entry, self._read(entry, VisitClosed)

    def _on_rejected(self, entry: LogEntry) -> None:
        self._require(entry, not self._ended(), "ends a visit that had ended")
        self._require(entry, not self.begun, "comes after rounds: it hides what was spent")
        self.rejected = True

    def _on_revoked_seen(self, entry: LogEntry) -> None:
        self.revoked_seen = self.revoked_seen or entry

    def _on_refused(self, entry: LogEntry) -> None:
        """A refusal changes nothing."""


_STEPS: dict[str, Callable[[VisitRecord, LogEntry], None]] = {
    VisitRequested.entry_kind: VisitRecord._on_requested,
    PermitChecked.entry_kind: VisitRecord._on_checked,
    VisitApproved.entry_kind: VisitRecord._on_approved,
    BudgetReserved.entry_kind: VisitRecord._on_reserved,
    CohortBuilt.entry_kind: VisitRecord._on_built,
    EnclaveStarted.entry_kind: VisitRecord._on_started,
    RoundBegun.entry_kind: VisitRecord._on_begun,
    RoundReleased.entry_kind: VisitRecord._on_released,
    RoundRefused.entry_kind: VisitRecord._on_refused,
    ReleaseAcknowledged.entry_kind: VisitRecord._on_acknowledged,
    VisitClosed.entry_kind: VisitRecord._on_closed,
    VisitRejected.entry_kind: VisitRecord._on_rejected,
    PermitRevokedSeen.entry_kind: VisitRecord._on_revoked_seen,
}


_OUTSIDE_VISITS = frozenset({QueryDrawn.entry_kind, FeasibilityAnswered.entry_kind}) | FHIR_KINDS


def visit_records(log: NodeLog) -> dict[str, VisitRecord]:
    """Every visit under the permit, by id. Raises VerificationError naming the entry out of order."""
    records: dict[str, VisitRecord] = {}
    for entry in log.entries:
        _check_time(log, entry)
        if entry.kind.startswith("node."):
            continue
        if entry.visit is None and entry.kind not in _OUTSIDE_VISITS:
            if entry.kind != PermitChecked.entry_kind or _accepts(entry.body):
                raise broken(log.place(entry), f"{entry.kind} belongs to no visit", "ORDER")
            continue
        if entry.visit is not None and entry.kind not in _OUTSIDE_VISITS:
            records.setdefault(entry.visit, VisitRecord(log, entry.visit)).add(entry)
    return records


def _accepts(body: dict[str, Any]) -> bool:
    return body.get("outcome") != "refused"


def _check_time(log: NodeLog, entry: LogEntry) -> None:
    try:
        _TIME.validate_python(entry.time)
    except ValidationError as error:
        raise broken(log.place(entry), "has no time with a time zone", "ORDER") from error


def spent_under_permit(records: Iterable[VisitRecord]) -> tuple[PrivacyEvent, ...]:
    """All that one node drew under the permit, over all visits."""
    return tuple(event for record in records for event in record.events())
