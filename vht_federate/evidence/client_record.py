"""Programs of the hospital that read over its local FHIR API under the permit, as a node's log tells of them.

    fhir.client-registered -> fhir.exported* -> fhir.client-revoked

Nothing of it belongs to a visit or leaves the hospital through the study; it costs no epsilon. An export may be logged
while its program is being revoked.
"""

from dataclasses import dataclass
from typing import TypeVar

from pydantic import ValidationError

from vht_federate.evidence.entry import LogEntry
from vht_federate.evidence.events import Event, FhirClientRegistered, FhirClientRevoked, FhirExported
from vht_federate.evidence.finding import broken
from vht_federate.evidence.node_log import NodeLog

__all__ = ["FHIR_KINDS", "ClientRecord", "clients_registered"]

FHIR_KINDS = frozenset(event.entry_kind for event in (FhirClientRegistered, FhirClientRevoked, FhirExported))
E = TypeVar("E", bound=Event)


@dataclass
class ClientRecord:
    """One program: its name, how often it exported, and whether it may still read."""

    name: str
    exports: int = 0
    revoked: bool = False


def clients_registered(log: NodeLog) -> dict[str, ClientRecord]:
    """Every program registered under the permit, by id. Raises VerificationError naming the entry out of order."""
    clients: dict[str, ClientRecord] = {}
    for entry in log.entries:
        if entry.kind not in FHIR_KINDS:
            continue
        if entry.visit is not None:
            raise broken(log.place(entry), f"{entry.kind} belongs to a visit", "ORDER")
        if entry.kind == FhirClientRegistered.entry_kind:
            registered = _read(log, entry, FhirClientRegistered)
            if registered.client in clients:
                raise broken(log.place(entry), f"{entry.kind} stands twice for one program", "ORDER")
            clients[registered.client] = ClientRecord(registered.name)
            continue
        exported = entry.kind == FhirExported.entry_kind
        named = _read(log, entry, FhirExported) if exported else _read(log, entry, FhirClientRevoked)
        client = clients.get(named.client)
        if client is None:
            raise broken(log.place(entry), f"{entry.kind} is of a program that was not registered", "ORDER")
        if exported:
            client.exports += 1
        elif client.revoked:
            raise broken(log.place(entry), f"{entry.kind} stands twice for one program", "ORDER")
        else:
            client.revoked = True
    return clients


def _read(log: NodeLog, entry: LogEntry, event: type[E]) -> E:
    try:
        return event.read(entry.body)
    except ValidationError as error:
        raise broken(log.place(entry), f"{entry.kind} is not one", "ORDER") from error
