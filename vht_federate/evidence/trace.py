"""The story of a permit from issue to release, one line per event, told by those who signed it."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from vht_federate.domain.permit import Permit
from vht_federate.domain.study import StudyRequest
from vht_federate.evidence.entry import LogEntry
from vht_federate.evidence.node_log import NodeLog
from vht_federate.evidence.status_check import SeenStatus

__all__ = ["TraceLine", "trace_of"]


@dataclass(frozen=True)
class TraceLine:
    """``where`` is the file, with the entry's index where there is one."""

    time: datetime
    who: str
    what: str
    where: str

    def as_dict(self) -> dict[str, str]:
        return {"time": self.time.isoformat(), "who": self.who, "what": self.what, "where": self.where}


def trace_of(
    permit: Permit, request: StudyRequest, statuses: Iterable[SeenStatus], logs: Iterable[NodeLog]
) -> tuple[TraceLine, ...]:
    """All lines in the order of their times; a node's entries keep their order."""
    lines = [
        TraceLine(permit.issued_at, permit.hdab, f"issues permit {permit.permit_id}", "permit.jwt"),
        TraceLine(request.created_at, _user(permit, request), f"asks for study {request.study_id}", "study.jws"),
    ]
    for seen in statuses:
        revoked = permit.permit_id in seen.status.revoked
        word = "revoked" if revoked else "good"
        what = f"status list {seen.status.serial}: the permit is {word}"
        lines.append(TraceLine(seen.status.issued_at, permit.hdab, what, seen.file))
    for log in logs:
        for entry in log.entries:
            time = datetime.fromisoformat(entry.time)
            lines.append(TraceLine(time, log.node, describe(entry), log.place(entry)))
    return tuple(sorted(lines, key=lambda line: line.time))


def _user(permit: Permit, request: StudyRequest) -> str:
    return next((user.name for user in permit.data_users if user.kid == request.user_kid), "data user")


def describe(entry: LogEntry) -> str:
    """One entry in plain words."""
    body: dict[str, Any] = entry.body
    say = body.get
    match entry.kind:
        case "node.started":
            return f"starts (version {say('version')})"
        case "permit.checked":
            return f"checks permit and request: {say('outcome')}{_code(body)}"
        case "visit.requested":
            return f"receives the request for study {say('study_id')}"
        case "visit.approved":
            return f"operator {say('operator')} approves component {_short(say('digest'))}"
        case "budget.reserved":
            return f"reserves the plan's budget: epsilon {_epsilon(say('epsilon_if_spent'))}"
        case "feasibility.answered":
            answer = say("code") or ("below its smallest cell" if say("count") is None else f"{say('count')} patients")
            return f"answers a feasibility question at epsilon {float(say('epsilon') or 0):g}: {answer}"
        case "cohort.built":
            return f"builds the cohort from {len(say('columns') or ())} permitted columns"
        case "enclave.started":
            return f"starts the enclave with component {_short(say('component_digest'))}"
        case "round.begun":
            return f"begins {say('job')} {say('round')} on status list {say('status_serial')}; budget drawn"
        case "round.released":
            spent = _epsilon(say("epsilon"))
            return f"releases {say('job')} {say('round')}: {_short(say('output_sha256'))}; spent so far {spent}"
        case "round.refused":
            return f"refuses {say('job')} {say('round')}{_code(body)}"
        case "release.acknowledged":
            return f"acknowledges the {say('kind')} {_short(say('artifact_sha256'))}"
        case "visit.closed":
            return f"closes the visit ({say('reason')}): epsilon {_epsilon(say('epsilon'))}"
        case "visit.rejected":
            return f"rejects the visit ({say('reason')})"
        case "permit.revoked-seen":
            return "sees that the permit is revoked"
        case _:
            return entry.kind


def _code(body: dict[str, Any]) -> str:
    return f" ({body['code']})" if body.get("code") else ""


def _short(digest: Any) -> str:
    return f"{str(digest)[:12]}…"


def _epsilon(value: Any) -> str:
    if not isinstance(value, dict):
        return "-"
    return ", ".join(f"{name} {float(cost):.4f}" for name, cost in sorted(value.items()))
