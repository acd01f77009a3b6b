"""The local FHIR API of one node, put together: who may ask, what is shown, what was done."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path

from connector.fhir_api.access_log import AuditLog, Event
from connector.fhir_api.export_jobs import Exports
from connector.fhir_api.limits import Limits
from connector.fhir_api.permit_view import PermitViews
from connector.fhir_api.tokens import Access, Tokens
from connector.governance.fhir_clients import Clients
from connector.governance.logged_transactions import Steps
from connector.governance.study_admission import StudyAdmission
from connector.quality.survey_figures import CountDisclosure
from connector.settings import NodeFiles, NodeSettings
from connector.store.models import FhirClientRow
from vht_federate.errors import RefusedError, VhtError

__all__ = ["LocalApi", "local_api"]

ACCESS_LOG, WORKING = "access-log", "fhir-api"  # folders of the state directory
BUSY_S = 30.0
BUCKETS = 4_096  # kept before those that are full again go


def local_api(
    settings: NodeSettings, files: NodeFiles, steps: Steps, admission: StudyAdmission, *, limits: Limits | None = None
) -> "LocalApi":
    """The API of an open node; it answers once it is mounted, and exports once it is started."""
    limits, clock, base = limits or Limits(), admission.clock, f"{settings.internal_url}/fhir"
    database = steps.database
    clients = Clients(database, steps, admission, settings.dataset.categories, clock)
    permit_views = PermitViews(files.fhir, database, admission.installed, clock, files.code_maps)
    rounded = CountDisclosure(settings.smallest_cell).count
    working = files.state / WORKING
    return LocalApi(
        base,
        clients,
        Tokens(clients, f"{base}/token", settings.ca, limits, clock),
        permit_views,
        Exports(working / "exports", clients, permit_views, admission.evidence, rounded, clock, limits),
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
    permit_views: PermitViews
    exports: Exports
    audit: AuditLog
    scratch: Path
    limits: Limits
    clock: Callable[[], datetime]
    _buckets: dict[str, tuple[float, float]] = field(default_factory=dict)
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _working: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(4))

    def access(self, token: str) -> Access:
        """Raises RefusedError VHT-REFUSED-TOKEN, VHT-REFUSED-RATE; PermitError, RevokedError; UnavailableError."""
        holder = self.tokens.holder(token)
        if holder is not None:
            self.require_rate(holder.id)
        access = self.tokens.access(token)
        self.audit.require_disk_space()
        return access

    def require_rate(self, who: str) -> None:
        """A token bucket for each ``who``: a client, or an address. Raises RefusedError VHT-REFUSED-RATE."""
        now, burst = time.monotonic(), float(self.limits.burst)
        with self._guard:
            if len(self._buckets) >= BUCKETS:
                self._buckets = {
                    key: bucket for key, bucket in self._buckets.items() if self._level(bucket, now) < burst
                }
            level = self._level(self._buckets.get(who, (burst, now)), now)
            self._buckets[who] = max(0.0, level - 1), now
        if level < 1:
            raise RefusedError("too many requests", code="VHT-REFUSED-RATE", hint="wait a second")

    def _level(self, bucket: tuple[float, float], now: float) -> float:
        level, since = bucket
        return min(float(self.limits.burst), level + (now - since) * self.limits.requests_per_s)

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

    def note(self, event: Event, client: FhirClientRow | None) -> None:
        """Write an event, with what is known of who asked."""
        if client is not None:
            event = replace(event, client=client.id, client_name=client.name, permit=client.permit_id)
        self.audit.write(event)

    def note_refusal(self, what: str, address: str, error: VhtError, client: FhirClientRow | None) -> None:
        """Refusals of one client, or of strangers at one address, are written as often as that one may ask.

        Raises RefusedError VHT-REFUSED-RATE beyond that.
        """
        self.require_rate(f"refused {client.id if client else address}")
        self.note(Event(what, address, code=error.code), client)
