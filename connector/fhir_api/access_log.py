"""The access log: one IHE BALP AuditEvent (FHIR R4) for each token, read, search, export, download, view and refusal.

Events are lines of append-only files in the node. Where these are too many the oldest goes, but none that is younger
than ``Limits.audit_days``: a client that asks a lot can erase nothing of the last weeks. The disk they take is bounded
all the same: at ``Limits.audit_files_max`` files the API answers nobody until the operator has archived some, and
strangers find it full at half of that, so they cannot bring this about. Patients appear by the permit's pseudonym, and
what a client sent appears only where the API understood it.
"""

import base64
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import orjson

from connector.fhir_api.documents import checked
from connector.fhir_api.limits import Limits
from vht_federate.errors import UnavailableError

__all__ = ["AuditLog", "Event", "told"]

_BALP = "https://profiles.ihe.net/ITI/BALP/StructureDefinition/IHE.BasicAudit."
_DICOM = "http://dicom.nema.org/resources/ontology/DCM"
_TYPES = "http://terminology.hl7.org/CodeSystem/audit-event-type"
_INTERACTIONS = "http://hl7.org/fhir/restful-interaction"
_ENTITIES = "http://terminology.hl7.org/CodeSystem/audit-entity-type"
_ROLES = "http://terminology.hl7.org/CodeSystem/object-role"
_SOURCE = {"system": _DICOM, "code": "110153", "display": "Source Role ID"}
_DESTINATION = {"system": _DICOM, "code": "110152", "display": "Destination Role ID"}
_LONGEST_EVENT = 8 << 10


@dataclass(frozen=True)
class Event:
    """One access. ``what``: token, read, search, export, download, view, or another word of the API.

    ``client`` and ``permit`` are None for a stranger; ``patient`` is a pseudonym, ``resource`` the type and the id
    under the permit, ``query`` the understood part of the request, ``code`` the reason of a refusal.
    """

    what: str
    address: str
    client: str | None = None
    client_name: str | None = None
    permit: str | None = None
    patient: str | None = None
    resource: str | None = None
    query: str | None = None
    count: int | None = None
    code: str | None = None


@dataclass
class AuditLog:
    """The events of one node, in ``folder``."""

    folder: Path
    node: str
    base: str
    clock: Callable[[], datetime]
    limits: Limits
    _guard: threading.Lock = field(default_factory=threading.Lock)

    def write(self, event: Event) -> None:
        """Returns when the event is in the file: an access that cannot be recorded does not happen.

        Raises UnavailableError VHT-UNAVAILABLE-DISK where the log is full.
        """
        line = checked(_resource(event, self.node, self.base, self.clock())) + b"\n"
        with self._guard:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            path = self._open_file(len(line), stranger=event.client is None)
            with path.open("ab") as file:
                file.write(line)

    def require_disk_space(self) -> None:
        """Raises UnavailableError VHT-UNAVAILABLE-DISK where no client's event could be written."""
        with self._guard:
            self._open_file(_LONGEST_EVENT, stranger=False)

    def _open_file(self, size: int, *, stranger: bool) -> Path:
        files = self._files()
        maximum = self.limits.audit_files_max // (2 if stranger else 1)
        if files and len(files) <= maximum and files[-1].stat().st_size + size <= self.limits.audit_file:
            return files[-1]
        number = int(files[-1].stem) + 1 if files else 1
        while files and len(files) >= self.limits.audit_files and self._is_old(files[0]):
            files.pop(0).unlink()
        if len(files) >= maximum:
            raise UnavailableError(
                "the access log is full, so nothing can be answered",
                code="VHT-UNAVAILABLE-DISK",
                hint="the node's operator moves the oldest files of access-log to an archive",
            )
        return self.folder / f"{number:08d}.ndjson"

    def _is_old(self, path: Path) -> bool:
        """By its newest event."""
        newest = datetime.fromtimestamp(path.stat().st_mtime, UTC)
        return self.clock() - newest >= timedelta(days=self.limits.audit_days)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.ndjson"))

    def events(self) -> Iterator[dict[str, Any]]:
        """AuditEvents, newest first; each with ``id`` as its place in the log, FILE-LINE."""
        for path in reversed(self._files()):
            lines = path.read_bytes().splitlines()
            for number in range(len(lines), 0, -1):
                yield orjson.loads(lines[number - 1]) | {"id": f"{int(path.stem)}-{number}"}


def told(event: dict[str, Any]) -> dict[str, Any]:
    """An AuditEvent in an operator's words."""
    agent = event["agent"][0]
    details = {
        detail["type"]: detail.get("valueString")
        for entity in event.get("entity", [])
        for detail in entity.get("detail", [])
    }
    entities = {entity.get("role", {}).get("code", ""): entity for entity in event.get("entity", [])}
    query = entities.get("24", {}).get("query")
    return {
        "id": event["id"],
        "recorded": event["recorded"],
        "what": event["subtype"][0]["display"],
        "outcome": "done" if event["outcome"] == "0" else "refused",
        "code": event.get("outcomeDesc"),
        "client": agent["who"].get("identifier", {}).get("value"),
        "client_name": agent.get("name"),
        "address": agent.get("network", {}).get("address"),
        "permit_id": (agent.get("policy") or [""])[0].removeprefix("urn:vht:permit:") or None,
        "patient": entities.get("1", {}).get("what", {}).get("reference"),
        "resource": entities.get("4", {}).get("what", {}).get("reference"),
        "query": base64.b64decode(query).decode() if query else None,
        "count": int(details["count"]) if details.get("count") else None,
    }


def _resource(event: Event, node: str, base: str, now: datetime) -> dict[str, Any]:
    kind, subtype, action, profile = _meaning(event)
    reading = event.what in ("read", "download")  # data flows from us to the client; a query's words flow to us
    client, server = (_DESTINATION, _SOURCE) if reading else (_SOURCE, _DESTINATION)
    resource: dict[str, Any] = {
        "resourceType": "AuditEvent",
        "type": kind,
        "subtype": [subtype],
        "action": action,
        "recorded": now.isoformat(timespec="milliseconds"),
        "outcome": "0" if event.code is None else "4",
        "purposeOfEvent": [
            {"coding": [{"system": "http://terminology.hl7.org/CodeSystem/v3-ActReason", "code": "HRESCH"}]}
        ],
        "agent": [
            _client(event, client),
            {
                "type": {"coding": [server]},
                "who": {"display": node},
                "requestor": False,
                "network": {"address": base, "type": "5"},
            },
        ],
        "source": {"observer": {"display": node}, "type": [{"system": _SOURCES, "code": "4"}]},
    }
    if event.code is not None:
        resource["outcomeDesc"] = event.code
    elif profile:
        resource["meta"] = {"profile": [_BALP + profile]}
    entities = list(_entities(event))
    return resource | ({"entity": entities} if entities else {})


_SOURCES = "http://terminology.hl7.org/CodeSystem/security-source-type"


def _client(event: Event, role: dict[str, str]) -> dict[str, Any]:
    agent: dict[str, Any] = {
        "type": {"coding": [role]},
        "who": {"identifier": {"value": event.client}} if event.client else {"display": "unknown"},
        "requestor": True,
        "network": {"address": event.address, "type": "2"},
    }
    if event.client_name:
        agent["name"] = event.client_name
    if event.permit:
        agent["policy"] = [f"urn:vht:permit:{event.permit}"]
    return agent


def _meaning(event: Event) -> tuple[dict[str, str], dict[str, str], str, str | None]:
    """type, subtype, action, and the BALP profile of a success."""
    if event.what == "token":
        kind = {"system": _DICOM, "code": "110114", "display": "User Authentication"}
        return kind, {"system": _DICOM, "code": "110122", "display": "token"}, "E", None
    if event.what == "download":
        kind = {"system": _DICOM, "code": "110106", "display": "Export"}
        return kind, {"system": _INTERACTIONS, "code": "operation", "display": "download"}, "R", None
    kind = {"system": _TYPES, "code": "rest", "display": "Restful Operation"}
    prefix = "Patient" if event.patient else ""
    if event.what == "read":
        return kind, {"system": _INTERACTIONS, "code": "read", "display": "read"}, "R", f"{prefix}Read"
    if event.what == "search":
        return kind, {"system": _INTERACTIONS, "code": "search-type", "display": "search"}, "E", f"{prefix}Query"
    return kind, {"system": _INTERACTIONS, "code": "operation", "display": event.what}, "E", None


def _entities(event: Event) -> Iterator[dict[str, Any]]:
    if event.patient:
        yield {
            "type": {"system": _ENTITIES, "code": "1", "display": "Person"},
            "role": {"system": _ROLES, "code": "1", "display": "Patient"},
            "what": {"reference": f"Patient/{event.patient}"},
        }
    if event.query is not None:
        yield {
            "type": {"system": _ENTITIES, "code": "2", "display": "System Object"},
            "role": {"system": _ROLES, "code": "24", "display": "Query"},
            "query": base64.b64encode(event.query.encode()).decode(),
        }
    if event.resource or event.count is not None:
        entity: dict[str, Any] = {
            "type": {"system": _ENTITIES, "code": "2", "display": "System Object"},
            "role": {"system": _ROLES, "code": "4", "display": "Domain Resource"},
        }
        if event.resource:
            entity["what"] = {"reference": event.resource}
        if event.count is not None:
            entity["detail"] = [{"type": "count", "valueString": str(event.count)}]
        yield entity
