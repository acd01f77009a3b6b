"""The entries of one visit in their legal order, folded into one record.

    visit.requested -> permit.checked (accepted) -> visit.approved -> budget.reserved -> cohort.built
        -> enclave.started -> (round.begun -> round.released)* -> visit.closed

``visit.rejected`` may stand for ``visit.closed``; refusals may stand anywhere after the request; a release may be
acknowledged after the first round, also once the visit is closed. Nothing begins or leaves after
``permit.revoked-seen`` or the visit's end. An unknown kind is an error: an auditor guesses nothing.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, TypeAdapter, ValidationError

from vht_federate.domain.budget import PrivacyEvent
from vht_federate.domain.permit import Sha256
from vht_federate.domain.plan import StudyPlan
from vht_federate.domain.study import ComponentRef
from vht_federate.evidence.entry import LogEntry
from vht_federate.evidence.finding import broken
from vht_federate.evidence.node_log import NodeLog
from vht_federate.evidence.query_record import ANSWER, QUERY

__all__ = [
    "Acknowledged",
    "Begun",
    "Closed",
    "Released",
    "Requested",
    "Reserved",
    "VisitRecord",
    "spent_under_permit",
    "visit_records",
]

_TIME = TypeAdapter(AwareDatetime)


class _Body(BaseModel):
    """Fields a verifier reads; a node may say more."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class Requested(_Body):
    study_id: str
    request_digest: Sha256
    user_kid: str
    component: ComponentRef
    plan: StudyPlan


class Checked(_Body):
    outcome: str


class Accepted(Checked):
    permit_id: str
    code: None
    request_digest: Sha256
    status_serial: int


class Reserved(_Body):
    events: tuple[PrivacyEvent, ...]
    epsilon_if_spent: dict[str, float]
    dataset: str
    delta: float


class Built(_Body):
    columns: tuple[str, ...]
    minimum_cohort_met: bool
    opt_outs_as_of: AwareDatetime


class Started(_Body):
    component_digest: Sha256


class Begun(_Body):
    job: str
    round: int
    request_sha256: Sha256
    status_serial: int
    dataset: str
    events: tuple[PrivacyEvent, ...]


class Released(_Body):
    job: str
    round: int
    output_sha256: Sha256
    status_serial: int
    epsilon: dict[str, float]
    delta: float


class Acknowledged(_Body):
    kind: str
    artifact_sha256: Sha256


class Closed(_Body):
    spent: tuple[PrivacyEvent, ...]
    epsilon: dict[str, float]
    delta: float
    state: str
    reason: str


B = TypeVar("B", bound=_Body)


@dataclass
class VisitRecord:
    """What one node's log says of one visit. Keys of ``begun`` and ``released`` are (job, round)."""

    log: NodeLog
    visit: str
    requested: Requested | None = None
    accepted: Accepted | None = None
    approved: bool = False
    reserved: tuple[LogEntry, Reserved] | None = None
    started: bool = False
    begun: dict[tuple[str, int], tuple[LogEntry, Begun]] = field(default_factory=dict)
    released: dict[tuple[str, int], tuple[LogEntry, Released]] = field(default_factory=dict)
    acknowledged: list[tuple[LogEntry, Acknowledged]] = field(default_factory=list)
    built: Built | None = None
    closed: tuple[LogEntry, Closed] | None = None
    rejected: bool = False
    revoked_seen: LogEntry | None = None

    def events(self) -> tuple[PrivacyEvent, ...]:
        """All that was drawn, in order."""
        return tuple(event for _, begun in self.begun.values() for event in begun.events)

    def serials(self) -> tuple[int, ...]:
        """Of every status list that a decision relied on."""
        checked = (self.accepted.status_serial,) if self.accepted else ()
        begun = tuple(one.status_serial for _, one in self.begun.values())
        return checked + begun + tuple(one.status_serial for _, one in self.released.values())

    def add(self, entry: LogEntry) -> None:
        """Raises VerificationError VHT-VERIFY-ORDER for an entry that may not stand here."""
        step = _STEPS.get(entry.kind)
        if step is None:
            raise self.error(entry, f"is of an unknown kind {entry.kind!r}")
        if self.requested is None and entry.kind != "visit.requested":
            raise self.error(entry, f"{entry.kind} comes before its visit was requested")
        step(self, entry)

    def error(self, entry: LogEntry, what: str, code: str = "ORDER") -> Exception:
        return broken(self.log.place(entry), what, code)

    def _read(self, entry: LogEntry, kind: type[B]) -> B:
        try:
            return kind.model_validate(entry.body)
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
        self.requested = self._read(entry, Requested)

    def _on_checked(self, entry: LogEntry) -> None:
        body = self._read(entry, Checked)
        self._require(entry, body.outcome in ("accepted", "refused"), "has an unknown outcome")
        if body.outcome == "accepted":
            accepted = self._read(entry, Accepted)
            self._require(entry, not self._ended(), "accepts a visit that had ended")
            same = self.requested is not None and accepted.request_digest == self.requested.request_digest
            self._require(entry, same, "accepts another request than the one that was made")
            self._require(entry, accepted.permit_id == entry.permit_id, "accepts under another permit")
            self.accepted = accepted

    def _on_approved(self, entry: LogEntry) -> None:
        self._require(entry, self.accepted is not None, "comes before the permit was checked")
        self._require(entry, not self.begun and not self._ended() and not self.revoked_seen, "comes too late")
        digest, asked = entry.body.get("digest"), self.requested
        self._require(entry, asked is not None and digest == asked.component.digest, "approves another component")
        self._require(entry, bool(entry.body.get("operator")), "names no operator")
        self.approved = True

    def _on_reserved(self, entry: LogEntry) -> None:
        self._require(entry, self.approved, "comes before an operator approved")
        self._require(entry, not self.begun and not self._ended() and not self.revoked_seen, "comes too late")
        self.reserved = entry, self._read(entry, Reserved)

    def _on_built(self, entry: LogEntry) -> None:
        self._require(entry, self.reserved is not None, "comes before a budget was reserved")
        body = self._read(entry, Built)
        self._require(entry, body.minimum_cohort_met, "has fewer patients than the permit's minimum")
        self._require(entry, not self.begun, "comes too late")
        self.built = body

    def _on_started(self, entry: LogEntry) -> None:
        self._require(entry, self.built is not None, "comes before its cohort was built")
        digest, asked = self._read(entry, Started).component_digest, self.requested
        self._require(entry, asked is not None and digest == asked.component.digest, "runs another component")
        self.started = True

    def _on_begun(self, entry: LogEntry) -> None:
        body = self._read(entry, Begun)
        self._require(entry, self.started, "comes before its enclave started")
        self._require(entry, self.revoked_seen is None, "comes after the permit was seen revoked")
        self._require(entry, not self._ended(), "comes after the visit's end")
        self._require(entry, (body.job, body.round) not in self.begun, f"draws {body.job} {body.round} twice")
        reserved = self.reserved[1].dataset if self.reserved else None
        self._require(entry, body.dataset == reserved, "draws on another dataset than the one reserved")
        self.begun[body.job, body.round] = entry, body

    def _on_released(self, entry: LogEntry) -> None:
        body = self._read(entry, Released)
        call = body.job, body.round
        self._require(entry, call in self.begun, f"of {body.job} {body.round} has no round.begun")
        self._require(entry, call not in self.released, f"of {body.job} {body.round} stands twice")
        self._require(entry, self.revoked_seen is None, "comes after the permit was seen revoked")
        self._require(entry, not self._ended(), "comes after the visit's end")
        self.released[call] = entry, body

    def _on_acknowledged(self, entry: LogEntry) -> None:
        self._require(entry, bool(self.begun), "comes before any round")
        self._require(entry, self.revoked_seen is None, "comes after the permit was seen revoked")
        self.acknowledged.append((entry, self._read(entry, Acknowledged)))

    def _on_closed(self, entry: LogEntry) -> None:
        self._require(entry, not self._ended(), "ends a visit that had ended")
        self.closed = entry, self._read(entry, Closed)

    def _on_rejected(self, entry: LogEntry) -> None:
        self._require(entry, not self._ended(), "ends a visit that had ended")
        self._require(entry, not self.begun, "comes after rounds: it hides what was spent")
        self.rejected = True

    def _on_revoked_seen(self, entry: LogEntry) -> None:
        self.revoked_seen = self.revoked_seen or entry

    def _on_refused(self, entry: LogEntry) -> None:
        """A refusal changes nothing."""


_STEPS: dict[str, Callable[[VisitRecord, LogEntry], None]] = {
    "visit.requested": VisitRecord._on_requested,
    "permit.checked": VisitRecord._on_checked,
    "visit.approved": VisitRecord._on_approved,
    "budget.reserved": VisitRecord._on_reserved,
    "cohort.built": VisitRecord._on_built,
    "enclave.started": VisitRecord._on_started,
    "round.begun": VisitRecord._on_begun,
    "round.released": VisitRecord._on_released,
    "round.refused": VisitRecord._on_refused,
    "release.acknowledged": VisitRecord._on_acknowledged,
    "visit.closed": VisitRecord._on_closed,
    "visit.rejected": VisitRecord._on_rejected,
    "permit.revoked-seen": VisitRecord._on_revoked_seen,
}


def visit_records(log: NodeLog) -> dict[str, VisitRecord]:
    """Every visit under the permit, by id. Raises VerificationError naming the entry out of order."""
    records: dict[str, VisitRecord] = {}
    for entry in log.entries:
        _check_time(log, entry)
        if entry.kind.startswith("node."):
            continue
        if entry.visit is None and entry.kind not in (QUERY, ANSWER):
            if entry.kind != "permit.checked" or _accepts(entry.body):
                raise broken(log.place(entry), f"{entry.kind} belongs to no visit", "ORDER")
            continue
        if entry.visit is not None:
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
