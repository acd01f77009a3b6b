"""An entry of an evidence log in plain words: one sentence for each kind of event, made of public values."""

from collections.abc import Callable
from typing import Any, cast

from pydantic import ValidationError

from vht_federate.evidence import events
from vht_federate.evidence.entry import LogEntry
from vht_federate.evidence.events import EVENTS, Decision, Epsilon, Event

__all__ = ["describe", "digest_in"]


def describe(entry: LogEntry) -> str:
    """What happened at the node. Of a kind that is unknown here, or a body that is garbled, the kind itself."""
    event = EVENTS.get(entry.kind)
    try:
        return entry.kind if event is None else _WORDS[event](event.read(entry.body))
    except ValidationError:
        return entry.kind


def digest_in(entry: LogEntry) -> str | None:
    """Of what left, was acknowledged, approved, started or exported; None where the entry names none."""
    names = ("output_sha256", "artifact_sha256", "component_digest", "digest")
    digests = (entry.body.get(name) for name in names)
    return next((digest for digest in digests if isinstance(digest, str) and digest), None)


def _by(event: Decision) -> str:
    return f" by {event.operator}" if event.operator else ""


def _epsilon(epsilon: Epsilon) -> str:
    return ", ".join(f"{population} {value:.4f}" for population, value in sorted(epsilon.items()))


def _ingested(event: events.DatasetIngested) -> str:
    parts = [f"{event.lines:,} lines taken in, {event.quarantined:,} quarantined"]
    parts += [f" from {event.source}"] if event.source else []
    parts += [f", {event.deleted:,} resources deleted there"] if event.deleted else []
    parts += [", in place of all before"] if event.replaces else []
    return "".join(parts) + _by(event)


def _checked(event: events.PermitChecked) -> str:
    on = "" if event.status_serial is None else f" on status list {event.status_serial}"
    return f"Permit and study accepted{on}" if event.outcome == "accepted" else f"Study refused: {event.code}"


def _requested(event: events.VisitRequested) -> str:
    component = event.component
    return f"Study {event.study_id} asks to run {component.name} {component.version} ({component.profile})"


def _answered(event: events.FeasibilityAnswered) -> str:
    count = "below the smallest cell" if event.count is None else f"about {event.count:,} patients"
    return f"A feasibility question answered at epsilon {event.epsilon:g}: {event.code or count}"


def _released(event: events.RoundReleased) -> str:
    size = f", {event.output_bytes:,} bytes" if event.output_bytes is not None else ""
    return f"{event.job} {event.round} left the node{size}; epsilon so far: {_epsilon(event.epsilon)}"


def _built(event: events.CohortBuilt) -> str:
    maps = ", ".join(f"{name} ({sha256[:8]})" for name, sha256 in event.code_maps.items())
    by = f"; codes read by the maps {maps}" if maps else ""
    return f"Cohort read: {len(event.columns)} permitted columns, above the permit's minimum{by}"


def _started(event: events.EnclaveStarted) -> str:
    held = f", closed off by: {event.isolation}" if event.isolation else ""
    walls = f" ({', '.join(event.walls)})" if event.walls else ""
    return f"Enclave started{held}{walls}"


_TABLE: dict[Any, Callable[[Any], str]] = {
    events.NodeStarted: lambda event: f"Node started, version {event.version}",
    events.DatasetIngested: _ingested,
    events.OptOutRecorded: lambda event: f"A patient's opt-out recorded{_by(event)}, in force since {event.since}",
    events.OptOutWithdrawn: lambda event: f"A patient's opt-out withdrawn{_by(event)} from {event.until}",
    events.PseudonymsErased: lambda event: f"Pseudonyms of permit {event.permit_id} erased: its retention is over",
    events.PermitChecked: _checked,
    events.RefusalsCounted: lambda event: f"{event.refused:,} more requests refused since {event.since}",
    events.VisitRequested: _requested,
    events.VisitApproved: lambda event: f"Approved{_by(event)}",
    events.VisitRejected: lambda event: f"Rejected{_by(event)}: {event.reason or 'no reason given'}",
    events.BudgetReserved: lambda event: (
        f"Budget reserved; epsilon if all is spent: {_epsilon(event.epsilon_if_spent)}"
    ),
    events.CohortBuilt: _built,
    events.EnclaveStarted: _started,
    events.RoundBegun: lambda event: (
        f"{event.job} {event.round} begun on status list {event.status_serial}, its budget spent"
    ),
    events.RoundReleased: _released,
    events.RoundRefused: lambda event: f"Call {event.job or 'unknown'} {event.round or ''} refused: {event.code}",
    events.ReleaseAcknowledged: lambda event: f"Release of a {event.kind} acknowledged",
    events.VisitClosed: lambda event: f"Visit ended{_by(event)}: {event.reason}; spent: {_epsilon(event.epsilon)}",
    events.PermitRevokedSeen: lambda _: "The permit issuer revoked the permit: everything stops",
    events.QueryDrawn: lambda event: f"A query ({event.label}){_by(event)}, its budget spent",
    events.FeasibilityAnswered: _answered,
    events.FhirClientRegistered: lambda event: f"Program {event.name} may read over the local FHIR API{_by(event)}",
    events.FhirClientRevoked: lambda event: f"A program may no longer read over the local FHIR API{_by(event)}",
    events.FhirExported: lambda event: f"A program exported {', '.join(event.resources_rounded)}",
}
_WORDS = cast("dict[type[Event], Callable[[Event], str]]", _TABLE)
assert _WORDS.keys() == set(EVENTS.values()), "every kind of event has its words"
