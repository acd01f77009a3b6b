"""Bulk Data ``$export``: jobs of one worker thread, their NDJSON private to the node, their end certain.

A job's files are written below ``exports/JOB`` and go when they expire, when their client deletes the job, when it is
revoked, when the permit ends, and when the node starts or stops: nothing of an export outlives the process that made
it. The node's upkeep sees to it, whether anybody asks or not. Before the manifest is sent, the evidence log holds what
was made: rounded counts and a digest.
"""

import hashlib
import logging
import queue
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import orjson

from connector.fhir.disk_full import on_this_disk
from connector.fhir_api.export_request import Kickoff
from connector.fhir_api.limits import Limits
from connector.fhir_api.permit_view import PermitViews, Resource
from connector.fhir_api.tokens import Access
from connector.governance.fhir_clients import Clients
from vht_federate.errors import InputError, NotFoundError, PermitError, RefusedError, RevokedError, VhtError
from vht_federate.evidence.events import FhirExported
from vht_federate.evidence.log import EvidenceLog

__all__ = ["Exports", "Job", "Output", "manifest"]

log = logging.getLogger("vht.node.exports")


@dataclass(frozen=True)
class Output:
    """One finished file."""

    type: str
    name: str
    count: int
    sha256: str


@dataclass
class Job:
    """One export. ``state``: waiting, running, done, failed, or over (cancelled, expired)."""

    id: str
    access: Access
    request: str  # as it stands in the manifest: our own spelling
    kickoff: Kickoff
    begun: datetime
    state: str = "waiting"
    progress: str = "waiting"
    transaction: datetime | None = None
    ends: datetime | None = None
    outputs: list[Output] = field(default_factory=list)
    error: VhtError | None = None
    size: int = 0


@dataclass
class Exports:
    """The jobs of one node. ``start`` begins the worker, ``close`` ends it and removes every file."""

    folder: Path
    clients: Clients
    permit_views: PermitViews
    evidence: EvidenceLog
    rounded: Callable[[int], int | None]
    clock: Callable[[], datetime]
    limits: Limits
    _jobs: dict[str, Job] = field(default_factory=dict)
    _waiting: "queue.SimpleQueue[str | None]" = field(default_factory=queue.SimpleQueue)
    _guard: threading.RLock = field(default_factory=threading.RLock)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        self._thread = threading.Thread(target=self._work, name="vht-exports", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Returns when the worker has stopped: at its next look, not at the end of an export."""
        with self._guard:
            for job in self._jobs.values():
                job.state = "over"
            self._waiting.put(None)  # what is begun from now on stands behind it
        if self._thread is not None:
            self._thread.join()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- what clients ask -----------------------------------------------------------------------------------------

    def begin(self, access: Access, request: str, kickoff: Kickoff) -> Job:
        """Raises RefusedError VHT-REFUSED-RATE where the client, or all of them, have too many."""
        self._drop_over()
        with self._guard:
            client_jobs = sum(job.access.client.id == access.client.id for job in self._jobs.values())
            if client_jobs >= self.limits.jobs_per_client or len(self._jobs) >= self.limits.jobs:
                raise RefusedError(
                    "too many exports at once",
                    code="VHT-REFUSED-RATE",
                    hint="delete one that you have fetched (DELETE on its status address)",
                )
            job = Job(secrets.token_urlsafe(24), access, request, kickoff, self.clock())
            self._jobs[job.id] = job
            self._waiting.put(job.id)
        return job

    def job(self, access: Access, job_id: str) -> Job:
        """The client's own job. Raises NotFoundError for any other."""
        self._drop_over()
        with self._guard:
            job = self._jobs.get(job_id)
        if job is None or job.access.client.id != access.client.id or job.state == "over":
            raise NotFoundError("no such export", hint="it may have expired")
        return job

    def cancel(self, access: Access, job_id: str) -> None:
        self._end(self.job(access, job_id))

    def file(self, access: Access, job_id: str, name: str) -> tuple[Path, Output]:
        """A finished file of the client's own job, of a type that its token covers. Raises NotFoundError."""
        job = self.job(access, job_id)
        for output in job.outputs if job.state == "done" else ():
            if output.name == name and output.type in access.types:
                return self._place(job) / output.name, output
        raise NotFoundError("no such file of this export")

    def sweep(self) -> None:
        """Remove the files that nobody may fetch any more: expired, of a revoked client, of a permit that ended.

        The issuer's list being out of reach ends nothing: no file is given out without it, and it may come back.
        """
        self._drop_over()
        for job in self._held():
            if job.state == "done" and self._permit_ended(job):
                self._end(job)
        folders = list(self.folder.glob("*"))
        known = {job.id for job in self._held()}  # read after the folders: a job is known before it has one
        for folder in folders:
            if folder.name not in known:
                shutil.rmtree(folder, ignore_errors=True)

    def _drop_over(self) -> None:
        now = self.clock()
        for job in self._held():
            expired = job.ends is not None and now >= job.ends
            if expired or job.state == "over" or self.clients.get(job.access.client.id) is None:
                self._end(job)

    def _held(self) -> list[Job]:
        with self._guard:
            return list(self._jobs.values())

    def _permit_ended(self, job: Job) -> bool:
        try:
            self.clients.permit_of(job.access.client)
        except (PermitError, RevokedError) as error:
            return not error.code.startswith("VHT-PERMIT-STATUS")
        return False

    # --- the worker -----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        while (job_id := self._waiting.get()) is not None:
            with self._guard:
                job = self._jobs.get(job_id)
            if job is None or job.state != "waiting":
                continue
            try:
                with on_this_disk():
                    self._run(job)
            except VhtError as error:
                self._fail(job, error)
            except Exception:
                if job.state != "over":  # whoever ended it removed its folder
                    log.exception("an export failed")
                self._fail(job, VhtError("the export failed", hint="the node's operator finds the cause in its log"))

    def _run(self, job: Job) -> None:
        permit_view = self.permit_views.view_for(self.clients.permit_of(job.access.client))
        with self._guard:
            self._require_wanted(job)
            job.state, job.transaction = "running", permit_view.taken
            self._place(job).mkdir(parents=True, mode=0o700)
        asked = self.clock()

        def still_allowed() -> None:
            nonlocal asked
            self._require_wanted(job)
            if (self.clock() - asked).total_seconds() >= self.limits.status_every_s:
                self._require_allowed(job)
                asked = self.clock()

        with permit_view.open() as connection:
            for kind in job.kickoff.types:
                still_allowed()
                self._write(job, kind, permit_view.everything(connection, kind), still_allowed)
        self._require_allowed(job)
        self._finish(job)

    @staticmethod
    def _require_wanted(job: Job) -> None:
        if job.state == "over":
            raise NotFoundError("the export was cancelled")

    def _require_allowed(self, job: Job) -> None:
        if self.clients.get(job.access.client.id) is None:
            raise RefusedError("the client was revoked", code="VHT-REFUSED-CLIENT")
        self.clients.permit_of(job.access.client)

    def _write(self, job: Job, kind: str, resources: Iterator[Resource], still_allowed: Callable[[], None]) -> None:
        number = 0
        while batch := list(islice(resources, 1)):
            number += 1
            name, digest, count = f"{kind}.{number:04d}.ndjson", hashlib.sha256(), 0
            with (self._place(job) / name).open("wb") as file:
                while batch:
                    for resource in batch:
                        line = orjson.dumps(resource) + b"\n"
                        digest.update(line)
                        file.write(line)
                        job.size += len(line)
                    count += len(batch)
                    job.progress = f"{kind}: {count + (number - 1) * self.limits.file_resources}"
                    if job.size > self.limits.job_bytes:
                        raise InputError("the export is larger than one may be", code="VHT-INPUT-SIZE")
                    still_allowed()
                    batch = list(islice(resources, min(1_000, self.limits.file_resources - count)))
            job.outputs.append(Output(kind, name, count, digest.hexdigest()))

    def _finish(self, job: Job) -> None:
        """In the evidence before anybody hears of it."""
        outputs = sorted((output.type, output.count, output.sha256) for output in job.outputs)
        counts = {kind: sum(count for type_, count, _ in outputs if type_ == kind) for kind in job.kickoff.types}
        exported = FhirExported(
            client=job.access.client.id,
            resources_rounded={kind: self.rounded(count) for kind, count in counts.items()},
            digest=hashlib.sha256(orjson.dumps([sha256 for _, _, sha256 in outputs])).hexdigest(),
        )
        with self._guard:
            self._require_wanted(job)
            self.evidence.record(exported, permit_id=job.access.permit.permit_id)
            job.ends = self.clock() + timedelta(seconds=self.limits.keep_s)
            job.state, job.progress = "done", "done"

    def _fail(self, job: Job, error: VhtError) -> None:
        with self._guard:
            over = job.state == "over"
            job.outputs = []
            if not over:
                job.error, job.state = error, "failed"
                job.ends = self.clock() + timedelta(seconds=self.limits.keep_s)
        shutil.rmtree(self._place(job), ignore_errors=True)
        log.info("export ended", extra={"facts": {"code": error.code}})

    def _end(self, job: Job) -> None:
        """A job that runs stops by itself at its next look."""
        with self._guard:
            job.state = "over"
            self._jobs.pop(job.id, None)
        with suppress(OSError):
            shutil.rmtree(self._place(job))

    def _place(self, job: Job) -> Path:
        return self.folder / job.id


def manifest(job: Job, address: Callable[[Output], str]) -> dict[str, Any]:
    """What a finished export has made (Bulk Data, 2.5.5 of STU 2)."""
    return {
        "transactionTime": job.transaction.isoformat() if job.transaction else None,
        "request": job.request,
        "requiresAccessToken": True,
        "output": [{"type": output.type, "url": address(output), "count": output.count} for output in job.outputs],
        "deleted": [],
        "error": [],
    }
