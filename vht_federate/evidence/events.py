"""What a node's evidence log tells of: one type for each kind of entry, for whoever writes, verifies or shows it.

A verifier reads the fields that it knows (``read``); a node may say more in a later version. Whoever writes gives no
field that is not here: nothing is dropped on its way to the log. Bodies hold public values only. ``EVENTS`` lists every
kind; one that is not there is an error to a verifier, which guesses nothing.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, field_serializer

from vht_federate.domain.budget import PrivacyEvent
from vht_federate.domain.job_origin import JobOrigin
from vht_federate.domain.permit import Sha256
from vht_federate.domain.plan import StudyPlan
from vht_federate.domain.study import ComponentRef

__all__ = [
    "EVENTS",
    "BudgetReserved",
    "CohortBuilt",
    "DatasetIngested",
    "EnclaveStarted",
    "Event",
    "FeasibilityAnswered",
    "FhirClientRegistered",
    "FhirClientRevoked",
    "FhirExported",
    "NodeStarted",
    "OptOutRecorded",
    "OptOutWithdrawn",
    "PermitAccepted",
    "PermitChecked",
    "PermitRevokedSeen",
    "PseudonymsErased",
    "QueryDrawn",
    "RefusalsCounted",
    "ReleaseAcknowledged",
    "RoundBegun",
    "RoundRefused",
    "RoundReleased",
    "VisitApproved",
    "VisitClosed",
    "VisitRejected",
    "VisitRequested",
]

Epsilon = dict[str, float]  # by population


class Event(BaseModel):
    """The body of one entry. ``entry_kind`` is the entry's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    entry_kind: ClassVar[str]

    @classmethod
    def read(cls, body: Mapping[str, Any]) -> Self:
        """The fields of ``body`` that are known here. Raises pydantic's ValidationError for one that is garbled."""
        return cls.model_validate({name: value for name, value in body.items() if name in cls.model_fields})

    def body(self) -> dict[str, Any]:
        """As it stands in the log: every field that was given, whole, and none by default."""
        whole = self.model_dump(mode="json")
        return {name: value for name, value in whole.items() if name in self.model_fields_set}


class Decision(Event):
    """An act of somebody who may: ``operator`` by name, and how they came in (``via``)."""

    operator: str | None = None
    via: str | None = None


# --- the node and its data ------------------------------------------------------------------------------------------


class NodeStarted(Event):
    entry_kind = "node.started"
    version: str


class DatasetIngested(Decision):
    entry_kind = "dataset.ingested"
    dataset: str
    replaces: bool = False
    files: int = 0
    lines: int
    accepted: int = 0
    quarantined: int
    duplicate: int = 0
    deleted: int = 0
    source: str | None = None


class OptOutRecorded(Decision):
    """Logged without a permit: an auditor sees a salted hash, and only the node can tell whose entry it is."""

    entry_kind = "optout.recorded"
    subject: str
    since: str


class OptOutWithdrawn(Decision):
    entry_kind = "optout.withdrawn"
    subject: str
    until: str


class PseudonymsErased(Event):
    entry_kind = "pseudonyms.erased"
    permit_id: str
    retained_until: str


# --- permits and visits ---------------------------------------------------------------------------------------------


class PermitChecked(Event):
    """``outcome``: accepted or refused; a refusal names its ``code``."""

    entry_kind = "permit.checked"
    outcome: str
    permit_id: str | None = None
    code: str | None = None
    request_digest: str | None = None
    status_serial: int | None = None
    permit_sha256: str | None = None  # of what was presented, where it was refused


class PermitAccepted(PermitChecked):
    permit_id: str
    code: None
    request_digest: Sha256
    status_serial: int


class RefusalsCounted(Event):
    """Refusals beyond those that were logged one by one: of strangers, of repeated requests, of a busy data user."""

    entry_kind = "refusals.counted"
    since: str
    until: str
    refused: int
    codes: dict[str, int]


class VisitRequested(Event):
    entry_kind = "visit.requested"
    study_id: str
    request_digest: Sha256
    user_kid: str
    component: ComponentRef
    plan: StudyPlan
    coordinator_kid: str | None = None  # of the key that whoever presented the request proved to hold


class VisitApproved(Decision):
    entry_kind = "visit.approved"
    digest: str  # of the component


class VisitRejected(Decision):
    entry_kind = "visit.rejected"
    reason: str
    state: str = "rejected"
    code: str | None = None


class BudgetReserved(Event):
    entry_kind = "budget.reserved"
    events: tuple[PrivacyEvent, ...]
    epsilon_if_spent: Epsilon
    dataset: str
    delta: float
    caps: dict[str, dict[str, float]] = {}  # by name, each with epsilon and delta


class CohortBuilt(Event):
    """``code_maps``: the sha256 of each code map in force, by name, whether or not the data held a code of it."""

    entry_kind = "cohort.built"
    columns: tuple[str, ...]
    minimum_cohort_met: bool
    opt_outs_as_of: AwareDatetime
    code_maps: dict[str, Sha256] = {}

    @field_serializer("opt_outs_as_of")
    def _spelled(self, moment: datetime) -> str:
        return moment.isoformat()


class EnclaveStarted(Event):
    """``isolation``: the level that held; ``walls``: what held, by name; ``jobs``: whose code each job is, by name.

    All three were found before a component's code was loaded.
    """

    entry_kind = "enclave.started"
    component_digest: Sha256
    isolation: str | None = None
    walls: tuple[str, ...] = ()
    jobs: dict[str, JobOrigin] = {}
    device: str | None = None


class RoundBegun(Event):
    entry_kind = "round.begun"
    job: str
    round: int
    request_sha256: Sha256
    status_serial: int
    dataset: str
    events: tuple[PrivacyEvent, ...]


class RoundReleased(Event):
    entry_kind = "round.released"
    job: str
    round: int
    output_sha256: Sha256
    status_serial: int
    epsilon: Epsilon
    delta: float
    output_bytes: int | None = None


class RoundRefused(Event):
    entry_kind = "round.refused"
    job: str | None = None
    round: int | None = None
    code: str
    last_logged: bool = False


class ReleaseAcknowledged(Event):
    """``kind``: component, cohort or metrics."""

    entry_kind = "release.acknowledged"
    kind: str
    artifact_sha256: Sha256


class VisitClosed(Decision):
    entry_kind = "visit.closed"
    spent: tuple[PrivacyEvent, ...]
    epsilon: Epsilon
    delta: float
    state: str
    reason: str
    code: str | None = None


class PermitRevokedSeen(Event):
    entry_kind = "permit.revoked-seen"
    code: str | None = None


# --- what is told outside of visits ---------------------------------------------------------------------------------


class QueryDrawn(Decision):
    """A spend outside of visits."""

    entry_kind = "query.drawn"
    query: str
    label: str
    dataset: str
    events: tuple[PrivacyEvent, ...]
    delta: float | None = None


class FeasibilityAnswered(Event):
    """``count`` is null below the smallest cell."""

    entry_kind = "feasibility.answered"
    query: str
    epsilon: float
    count: int | None
    code: str | None = None
    dataset: str | None = None
    question_digest: str | None = None
    view_sha256: str | None = None
    user_kid: str | None = None
    status_serial: int | None = None
    noise_multiplier: float | None = None
    smallest_cell: int | None = None


class FhirClientRegistered(Decision):
    entry_kind = "fhir.client-registered"
    client: str
    name: str
    scope: str


class FhirClientRevoked(Decision):
    entry_kind = "fhir.client-revoked"
    client: str


class FhirExported(Event):
    entry_kind = "fhir.exported"
    client: str
    resources_rounded: dict[str, int | None]
    digest: str


EVENTS: dict[str, type[Event]] = {
    event.entry_kind: event
    for event in (
        *(NodeStarted, DatasetIngested, OptOutRecorded, OptOutWithdrawn, PseudonymsErased),
        *(PermitChecked, RefusalsCounted, VisitRequested, VisitApproved, VisitRejected, BudgetReserved, CohortBuilt),
        *(EnclaveStarted, RoundBegun, RoundReleased, RoundRefused, ReleaseAcknowledged, VisitClosed, PermitRevokedSeen),
        *(QueryDrawn, FeasibilityAnswered, FhirClientRegistered, FhirClientRevoked, FhirExported),
    )
}
