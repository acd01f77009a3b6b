"""The local FHIR API of one node, put together: who may ask, what is shown, what was done."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from connector.fhir.api.audit import AuditLog, Event
from connector.fhir.api.clients import Clients
from connector.fhir.api.exports import Exports
from connector.fhir.api.face import Faces
from connector.fhir.api.limits import Limits
from connector.fhir.api.tokens import Access, Tokens
from connector.governance.judge import Judge
from connector.quality.figures import Shown
from connector.settings import NodeFiles, NodeSettings
from connector.store.database import Database
from vht_federate.errors import RefusedError, VhtError

__all__ = ["LocalApi", "local_api"]

STRANGERS = ""
ACCESS_LOG, WORKING = "access-log", "fhir-api"  # folders of the state directory
BUSY_S = 30.0


def local_api(
    settings: NodeSettings, files: NodeFiles, database: Database, judge: Judge, *, limits: Limits | None = None
) -> "LocalApi":
    """The API of an open node; it answers once it is mounted, and exports once it is started."""
    limits, clock, base = limits or Limits(), judge.clock, f"{settings.internal_url}/fhir"
    clients = Clients(database, judge.evidence, judge, settings.dataset.categories, clock)
    faces = Faces(files.fhir, database, judge.installed, clock)
    rounded = Shown(settings.smallest_cell).count
    working = files.state / WORKING
    return LocalApi(
        base,
        clients,
        Tokens(clients, f"{base}/token", settings.ca, limits, clock),
        faces,
        Exports(working / "exports", clients, faces, judge.evidence, rounded, clock, limits),
        AuditLog(files.state / ACCESS_LOG, settings.name, base, clock, limits),
        working / "views",
        limits,
        clock,
    )


@dataclass
class LocalApi:
    """Every access to the API of one node passes here.

    ``scratch`` is where views put what they read, for as long as they run.
    """

    base: str
    clients: Clients
    tokens: Tokens
    faces: Faces
    exports: Exports
    audit: AuditLog
    scratch: Path
    limits: Limits
    clock: Callable[[], datetime]
    _buckets: dict[str, tuple[float, float]] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _working: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(4))

    def access(self, token: str) -> Access:
        """Raises RefusedError VHT-REFUSED-TOKEN, VHT-REFUSED-RATE; PermitError, RevokedError."""
        access = self.tokens.access(token)
        self.require_pace(access.client.id)
        return access

    def require_pace(self, client: str) -> None:
        """A token bucket for each client, and one for all strangers. Raises RefusedError VHT-REFUSED-RATE."""
        now = time.monotonic()
        with self._guard:
            level, since = self._buckets.get(client, (float(self.limits.burst), now))
            level = min(float(self.limits.burst), level + (now - since) * self.limits.requests_per_s)
            self._buckets[client] = max(0.0, level - 1), now
        if level < 1:
            raise RefusedError("too many requests", code="VHT-REFUSED-RATE", hint="wait a second")

    def start(self) -> None:
        """What a process that was killed left of its exports and views goes first."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        self.exports.start()

    def close(self) -> None:
        """Returns when no export runs any more; nothing of one is left."""
        self.exports.close()

    @contextmanager
    def working(self) -> Iterator[None]:
        """A few requests read the store at once; others wait. Raises RefusedError VHT-REFUSED-RATE."""
        if not self._working.acquire(timeout=BUSY_S):
            raise RefusedError("the node is busy", code="VHT-REFUSED-RATE", hint="ask again later")
        try:
            yield
        finally:
            self._working.release()

    def note(self, event: Event, access: Access | None) -> None:
        """Write an event, with what is known of who asked."""
        if access is not None:
            known = {"client": access.client.id, "client_name": access.client.name, "permit": access.permit.permit_id}
            event = Event(**{**vars(event), **known})
        self.audit.write(event)

    def note_refusal(self, what: str, address: str, error: VhtError, access: Access | None) -> None:
        """Refusals of strangers are written as often as strangers may ask, so they push no other events out."""
        if access is None:
            self.require_pace(STRANGERS)
        self.note(Event(what, address, code=error.code), access)
