"""The story of a permit from issue to release, one line per event, told by those who signed it."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from vht_federate.domain.permit import Permit
from vht_federate.domain.study import StudyRequest
from vht_federate.evidence.event_text import describe, digest_in
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
    for seen_status in statuses:
        revoked = permit.permit_id in seen_status.status.revoked
        word = "revoked" if revoked else "good"
        what = f"status list {seen_status.status.serial}: the permit is {word}"
        lines.append(TraceLine(seen_status.status.issued_at, permit.hdab, what, seen_status.file))
    for log in logs:
        for entry in log.entries:
            time = datetime.fromisoformat(entry.time)
            digest = digest_in(entry)
            what = f"{describe(entry)} ({digest[:12]}…)" if digest else describe(entry)
            lines.append(TraceLine(time, log.node, what, log.place(entry)))
    return tuple(sorted(lines, key=lambda line: line.time))


def _user(permit: Permit, request: StudyRequest) -> str:
    return next((user.name for user in permit.data_users if user.kid == request.user_kid), "data user")
