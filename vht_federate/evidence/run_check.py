"""``run.json``, which the coordinator wrote, against the nodes' own logs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vht_federate.domain.permit import Permit
from vht_federate.domain.study import StudyRequest
from vht_federate.evidence.finding import broken
from vht_federate.evidence.visit_record import VisitRecord
from vht_federate.signing.canonical import digest_of
from vht_federate.signing.strict_json import StrictJsonError, read_json

__all__ = ["Call", "RunClaims", "check_run", "read_run"]

FILE = "run.json"
Call = tuple[str, int]


class _Node(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    visit: str
    lost: str | None = None


class _Round(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    job: str
    round: int
    outputs: dict[str, str]


class RunClaims(BaseModel):
    """What a verifier reads of ``run.json``; a coordinator may say more."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    study_id: str
    state: str
    reason: str = ""
    nodes: dict[str, _Node] = Field(default_factory=dict)
    rounds: tuple[_Round, ...] = ()
    releases: dict[str, str] = Field(default_factory=dict)
    patients_noised: dict[str, float] = Field(default_factory=dict)
    evaluation: dict[str, Any] | None = None

    @property
    def completed(self) -> bool:
        return self.state == "completed"

    def present(self) -> list[str]:
        """Nodes that took part to the end."""
        return sorted(name for name, node in self.nodes.items() if node.lost is None)

    def outputs_of(self, node: str) -> dict[Call, str]:
        return {(round_.job, round_.round): round_.outputs[node] for round_ in self.rounds if node in round_.outputs}


def read_run(content: bytes) -> RunClaims:
    """Raises VerificationError VHT-VERIFY-RUN."""
    try:
        return RunClaims.model_validate(read_json(content))
    except (StrictJsonError, RecursionError) as error:
        raise broken(FILE, f"cannot be read in one way only: {error}", "RUN") from error
    except ValidationError as error:
        places = ", ".join(sorted({".".join(map(str, item["loc"])) or "it" for item in error.errors()}))
        raise broken(FILE, f"does not describe a run at: {places}", "RUN") from error


@dataclass(frozen=True)
class _Context:
    run: RunClaims
    permit: Permit
    request: StudyRequest
    request_digest: str


def check_run(
    run: RunClaims, permit: Permit, request: StudyRequest, records: Mapping[str, Mapping[str, VisitRecord]]
) -> dict[str, VisitRecord]:
    """Each node's record of this run's visit. ``records``: node -> visit -> record.

    Every output that the run used is in its node's log, and every output that a node released is in the run, unless
    the run says that it lost the node or did not complete. Raises VerificationError VHT-VERIFY-RUN.
    """
    if run.study_id != request.study_id:
        raise broken(FILE, f"belongs to study {run.study_id}, not {request.study_id}", "RUN")
    planned = set(request.plan.calls())
    calls = [(round_.job, round_.round) for round_ in run.rounds]
    if not set(calls) <= planned or len(set(calls)) != len(calls):
        raise broken(FILE, "holds a round that the plan does not have, or one round twice", "RUN")
    context = _Context(run, permit, request, digest_of(request.claims()))
    unknown = sorted({name for round_ in run.rounds for name in round_.outputs} - run.nodes.keys())
    if unknown:
        raise broken(FILE, f"holds outputs of nodes that are not in the run: {', '.join(unknown)}", "RUN")
    visits: dict[str, VisitRecord] = {}
    for name, node in sorted(run.nodes.items()):
        record = records.get(name, {}).get(node.visit)
        if record is not None:
            _check_visit(context, record)
            _check_outputs(context, name, record)
            visits[name] = record
        elif node.lost is None and (name not in records or run.outputs_of(name)):
            raise broken(f"nodes/{name}.json", f"does not hold visit {node.visit} of this run: cut or missing", "RUN")
    if run.completed:
        _check_complete(context, visits)
    return visits


def _check_visit(context: _Context, record: VisitRecord) -> None:
    file, requested, request = record.log.file, record.requested, context.request
    if requested is None or requested.request_digest != context.request_digest:
        raise broken(file, "holds a visit for another study request", "RUN")
    logged: tuple[Any, ...] = (requested.study_id, requested.user_kid, requested.component, requested.plan)
    if logged != (request.study_id, request.user_kid, request.component, request.plan):
        raise broken(file, "logged another study, user, component or plan than was signed", "RUN")
    if request.coordinator and requested.coordinator_kid != request.coordinator.kid:
        raise broken(file, "was opened for another than the coordinator that the signed study names", "RUN")
    if record.built is not None:
        beyond = sorted(set(record.built.columns) - set(request.columns))
        if beyond:
            raise broken(file, f"read columns that the study did not ask for: {', '.join(beyond)}", "RUN")
        if record.built.opt_outs_as_of != context.permit.issued_at:
            raise broken(file, "applied opt-outs of another day than the permit's issue (Article 71)", "RUN")
    if record.reserved is not None and record.reserved[1].dataset not in request.dataset_ids:
        raise broken(file, f"spent on dataset {record.reserved[1].dataset}, which the study does not name", "RUN")


def _check_outputs(context: _Context, name: str, record: VisitRecord) -> None:
    run, file = context.run, record.log.file
    used = run.outputs_of(name)
    for (job, number), digest in used.items():
        if (job, number) not in record.released:
            raise broken(file, f"lacks the release of {job} {number} that {FILE} used: cut", "RUN")
        entry, released = record.released[job, number]
        if released.output_sha256 != digest:
            raise record.error(entry, f"released another output of {job} {number} than {FILE} used", "RUN")
    if run.completed and run.nodes[name].lost is None:
        for (job, number), (entry, _) in record.released.items():
            if (job, number) not in used:
                raise record.error(entry, f"released an output of {job} {number} that {FILE} does not mention", "RUN")


def _check_complete(context: _Context, visits: Mapping[str, VisitRecord]) -> None:
    run, least = context.run, context.permit.minimum_nodes
    present = run.present()
    if len(present) < least:
        raise broken(FILE, f"completed with {len(present)} nodes; the permit asks for {least}", "RUN")
    for job, number in context.request.plan.calls():
        missing = [name for name in present if (job, number) not in run.outputs_of(name)]
        if missing:
            raise broken(FILE, f"lacks the output of {job} {number} of {', '.join(missing)}", "RUN")
    for name in present:
        if visits[name].closed is None:
            raise broken(visits[name].log.file, "does not close the visit of this run: cut", "RUN")
