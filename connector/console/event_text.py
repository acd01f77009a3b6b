"""The evidence log in an operator's words: one sentence for each entry, made of public values."""

from collections.abc import Callable
from itertools import islice
from typing import Any

from vht_federate.evidence.entry import LogEntry
from vht_federate.evidence.log import EvidenceLog

__all__ = ["chain_of_custody", "log_lines", "refusals", "sentence"]

Body = dict[str, Any]


def _epsilon(epsilon: dict[str, float]) -> str:
    return ", ".join(f"{population} {value:.3f}" for population, value in sorted(epsilon.items()))


def _who(body: Body) -> str:
    return f" by {body['operator']}" if body.get("operator") else ""


def _checked(body: Body) -> str:
    return "Permit and study accepted" if body["outcome"] == "accepted" else f"Study refused: {body['code']}"


def _requested(body: Body) -> str:
    component = body["component"]
    return f"Study {body['study_id']} asks to run {component['name']} {component['version']} ({component['profile']})"


def _released(body: Body) -> str:
    size = f", {body['output_bytes']:,} bytes" if body.get("output_bytes") is not None else ""
    return f"{body['job']} {body['round']} left the node{size}; epsilon so far: {_epsilon(body['epsilon'])}"


_SENTENCES: dict[str, Callable[[Body], str]] = {
    "node.started": lambda body: f"Node started, version {body['version']}",
    "dataset.ingested": lambda body: (
        f"{body['lines']:,} lines taken in, {body['quarantined']:,} quarantined"
        + (f" from {body['source']}" if body.get("source") else "")
        + (f", {body['deleted']:,} resources deleted there" if body.get("deleted") else "")
        + (", in place of all before" if body.get("replaces") else "")
        + _who(body)
    ),
    "optout.recorded": lambda body: f"A patient's opt-out recorded{_who(body)}, in force since {body['since']}",
    "optout.withdrawn": lambda body: f"A patient's opt-out withdrawn{_who(body)} from {body['until']}",
    "permit.checked": _checked,
    "refusals.counted": lambda body: f"{body['refused']:,} more requests of strangers refused since {body['since']}",
    "visit.requested": _requested,
    "visit.approved": lambda body: f"Approved{_who(body)}",
    "visit.rejected": lambda body: f"Rejected{_who(body)}: {body['reason'] or 'no reason given'}",
    "budget.reserved": lambda body: f"Budget reserved; epsilon if all is spent: {_epsilon(body['epsilon_if_spent'])}",
    "feasibility.answered": lambda body: (
        f"A feasibility question answered at epsilon {body['epsilon']:g}: "
        + (
            body["code"]
            or ("below the smallest cell" if body["count"] is None else f"about {body['count']:,} patients")
        )
    ),
    "cohort.built": lambda body: f"Cohort read: {len(body['columns'])} permitted columns, above the permit's minimum",
    "enclave.started": lambda body: f"Enclave started, cut off by {body['isolation']}",
    "query.drawn": lambda body: f"A query ({body['label']}){_who(body)}, its budget spent",
    "round.begun": lambda body: f"{body['job']} {body['round']} begun, its budget spent",
    "round.released": _released,
    "round.refused": lambda body: f"Call {body['job'] or 'unknown'} {body['round'] or ''} refused: {body['code']}",
    "release.acknowledged": lambda body: f"Release of a {body['kind']} acknowledged",
    "visit.closed": lambda body: f"Visit ended{_who(body)}: {body['reason']}; spent: {_epsilon(body['epsilon'])}",
    "fhir.client-registered": lambda body: f"Program {body['name']} may read over the local FHIR API{_who(body)}",
    "fhir.client-revoked": lambda body: f"A program may no longer read over the local FHIR API{_who(body)}",
    "fhir.exported": lambda body: f"A program exported {', '.join(body['resources_rounded'])}",
    "pseudonyms.erased": lambda body: f"Pseudonyms of permit {body['permit_id']} erased: its retention is over",
    "permit.revoked-seen": lambda _: "The permit issuer revoked the permit: everything stops",
}


def sentence(entry: LogEntry) -> str:
    """What happened, for people."""
    told = _SENTENCES.get(entry.kind)
    return told(entry.body) if told else entry.kind


def _line(entry: LogEntry) -> dict[str, Any]:
    digest = entry.body.get("output_sha256") or entry.body.get("artifact_sha256") or entry.body.get("digest")
    return {
        "index": entry.index,
        "time": entry.time,
        "kind": entry.kind,
        "visit": entry.visit,
        "permit_id": entry.permit_id,
        "sentence": sentence(entry),
        "code": entry.body.get("code"),
        "digest": digest,
    }


def chain_of_custody(log: EvidenceLog, visit_id: str) -> list[dict[str, Any]]:
    """All that was logged of one visit, oldest first."""
    return [_line(entry) for entry in log.entries() if entry.visit == visit_id]


def refusals(log: EvidenceLog, count: int) -> list[dict[str, Any]]:
    """The latest refused studies and rounds, newest first."""
    newest = (
        entry
        for entry in reversed(list(log.entries()))
        if entry.kind == "round.refused" or (entry.kind == "permit.checked" and entry.body["outcome"] == "refused")
    )
    return [_line(entry) for entry in islice(newest, count)]


def log_lines(log: EvidenceLog, count: int, before: int | None = None) -> tuple[list[dict[str, Any]], int | None]:
    """``count`` entries below index ``before`` (the newest), newest first, and where the next page starts."""
    entries = [entry for entry in log.entries() if before is None or entry.index < before]
    shown = entries[-count:]
    earlier = shown[0].index if shown and shown[0].index > 0 else None
    return [_line(entry) for entry in reversed(shown)], earlier
