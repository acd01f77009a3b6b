"""One hospital's node, put together: everything an open state directory is made of, in one object.

``Node.open`` holds the directory (database, evidence log, keys) and suffices for intake and opt-outs; ``start`` adds
what runs: the enclave host, visits in preparation, the SuperNode.
"""

import contextlib
import logging
import shutil
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from connector.enclave.isolation_probe import OfferedIsolation, offered_isolation
from connector.fhir import dataset_summary, subject_key
from connector.fhir.deletions import Deletions
from connector.governance.expiry import EVERY_S, Expiry, PeriodicTask
from connector.governance.feasibility import Feasibility
from connector.governance.installed_components import InstalledComponents
from connector.governance.intake_records import Intakes
from connector.governance.log_heads import LogHeads
from connector.governance.logged_transactions import Steps
from connector.governance.node_secret import NodeSecret
from connector.governance.operator_accounts import Accounts, Actor, system_user
from connector.governance.opt_outs import opt_out, patient_named, require_held, withdraw
from connector.governance.permit_status import IssuerService, PermitStatus, StatusSource
from connector.governance.query_spends import Queries
from connector.governance.recovery import LogRecovery, abandon_open_visits
from connector.governance.refusal_quota import RefusalQuota
from connector.governance.release_receipts import Releases
from connector.governance.round_gate import VisitGate
from connector.governance.study_admission import StudyAdmission
from connector.governance.visit_changes import VisitChanges
from connector.governance.visit_preparation import CohortBuilder, Enclaves, Preparation
from connector.governance.visits import Visits
from connector.overview import Overview
from connector.quality.surveys import Surveys
from connector.quality.unfilled_ports import UnfilledPorts
from connector.settings import NodeFiles, NodeSettings
from connector.store.node_database import open_database
from connector.supernode import SuperNode
from vht_federate.errors import VhtError
from vht_federate.evidence.events import NodeStarted, OptOutRecorded, OptOutWithdrawn
from vht_federate.evidence.log import EvidenceLog
from vht_federate.serving import require_free
from vht_federate.signing.keys import PublicKey, SigningKey

if TYPE_CHECKING:
    from connector.fhir_api.service import LocalApi
    from connector.pulls.schedule import Schedule

__all__ = ["Node", "utc_now"]

log = logging.getLogger("vht.node")


def isolation_status(settings: NodeSettings, offered: OfferedIsolation) -> dict[str, Any]:
    """What the node requires of an enclave, and what its machine gives."""
    return {"required": settings.enclave_isolation.value, **offered.as_dict()}


def utc_now() -> datetime:
    return datetime.now(UTC)


class Node:
    """An open node. Use as a context manager: whatever happens, children stop and the directory is left openable."""

    def __init__(
        self,
        state: Path,
        *,
        clock: Callable[[], datetime] = utc_now,
        status_source: StatusSource | None = None,
    ) -> None:
        self.settings, self.files = NodeSettings.read(state), NodeFiles(state.resolve())
        self.clock = clock
        self._closing = contextlib.ExitStack()
        self._run_dir: Path | None = None
        self.enclaves: Enclaves | None = None
        self.preparation: Preparation | None = None
        self.supernode: SuperNode | None = None
        self._regularly: PeriodicTask | None = None
        with contextlib.ExitStack() as opening:
            self._open(opening, status_source)
            self._closing = opening.pop_all()

    def _open(self, opening: contextlib.ExitStack, status_source: StatusSource | None) -> None:
        self.secret = NodeSecret.read(self.files.node_secret)
        self.key = SigningKey.read(self.files.evidence_key)
        self.issuer = PublicKey.read(self.files.issuer_key)
        self.database = open_database(self.settings, self.files)
        opening.callback(self.database.close)
        self.evidence = EvidenceLog(self.files.evidence, self.key, self.settings.name, self.clock)
        opening.callback(self.evidence.close)
        self.log_heads = LogHeads(self.database, self.evidence, self.key)
        self.log_heads.require_current()
        opening.callback(self.log_heads.settle)
        if status_source is None:
            service = IssuerService(self.settings.issuer_url, self.settings.ca, heads=self.log_heads)
            opening.callback(service.close)
            status_source = service
        self.overview = Overview(self.settings, self.files, self.database)
        dataset, key = self.settings.dataset.id, self.secret.subject_key
        paths, own_maps = self.settings.component_paths, self.files.code_maps
        self.unfilled = UnfilledPorts(self.files.fhir, own_maps, paths)
        sample, unfilled = self.settings.validation_sample, self.unfilled.of_installed
        store = self.files.fhir
        self.intakes = Intakes(dataset, store, key, self.database, self.evidence, self.clock, sample, unfilled)
        self.surveys = Surveys(store, paths, self.database, self.clock, own_maps)
        self.ledger = self.overview.ledger
        status = PermitStatus(status_source, self.issuer, self.database, self.clock)
        installed = InstalledComponents(self.settings.component_paths)
        refusals = RefusalQuota(self.evidence, self.clock)
        admission = StudyAdmission(
            dataset,
            self.issuer,
            status,
            installed,
            self.ledger,
            self.evidence,
            self.clock,
            refusals,
            self.settings.enclave_isolation,
            offered_isolation,
        )
        self.changes = VisitChanges()
        recovery = LogRecovery(self.database, self.evidence, self.ledger, self.changes, dataset)
        self.steps = Steps(self.database, self.evidence, recovery.follow)
        self.visits = Visits(self.steps, self.ledger, admission, self.secret, self.clock, self.changes)
        self.gate = VisitGate(self.visits, self.clock)
        self.releases = Releases(self.visits, self.clock)
        self.accounts = Accounts(self.database, self.files.operator_token.read_text().strip(), self.clock)
        self.queries = Queries(self.steps, self.ledger, dataset, self.clock)
        self.expiry = Expiry(self.visits, self.clock, further=(self._sweep_exports,))
        self.feasibility = Feasibility(
            admission, self.queries, self.database, self.files.fhir, self.settings, self.files.code_maps, self.clock
        )

    @cached_property
    def pulls(self) -> "Schedule":
        """Pulls from FHIR servers; an intake of a folder needs no HTTP client."""
        from connector.pulls.schedule import Schedule

        return Schedule(self.files.state, self.intakes.record, self.clock)

    @cached_property
    def fhir_api(self) -> "LocalApi":
        """The local FHIR API. An intake or an opt-out never asks for it, and need not load a web server."""
        from connector.fhir_api.service import local_api

        return local_api(self.settings, self.files, self.steps, self.visits.admission)

    def _sweep_exports(self) -> None:
        self.fhir_api.exports.sweep()

    # --- running ------------------------------------------------------------------------------------------------

    def start(
        self,
        *,
        enclaves: Enclaves | None = None,
        build_cohort: CohortBuilder | None = None,
        sweep_every_s: float = EVERY_S,
    ) -> None:
        """Recover from whatever was, then begin: enclaves may start, the SuperNode reports to its coordinator.

        Raises UnavailableError VHT-UNAVAILABLE-PORT where another process holds the SuperNode's port.
        """
        if self.settings.coordinator is not None:
            require_free(self.settings.coordinator.supernode_port)
        pulls, fhir_api = self.pulls, self.fhir_api  # made here, before several threads ask for them
        self._make_run_dir()
        self.steps.recover()
        self.queries.release_left()
        self.enclaves = enclaves or self._enclave_host()
        builder = build_cohort or self._cohort_builder()
        self.preparation = Preparation(self.visits, self.files, self.enclaves, self.gate, builder)
        self.changes.add(self.preparation)
        self.visits.foresee = self.preparation.foresee
        abandon_open_visits(self.visits, reason="the node was restarted")
        self.preparation.clear_leftovers()
        self.evidence.record(NodeStarted(version=version("vht-federate")))
        self._regularly = PeriodicTask(self.expiry.sweep, sweep_every_s)
        pulls.start()
        fhir_api.start()
        if self.settings.coordinator is not None:
            self.supernode = SuperNode(self.settings.coordinator, self.files, self.run_dir)
            self.supernode.start()
        log.info("node started", extra={"facts": {"node": self.settings.name, "pid_file": str(self.files.pid)}})

    def close(self) -> None:
        """Stop everything this node started, end its open visits, and let go of the directory."""
        with self._closing:
            if self._run_dir is not None:
                self._stop_running()

    def __enter__(self) -> "Node":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def run_dir(self) -> Path:
        """The folder of the enclaves' sockets; exists while the node runs."""
        if self._run_dir is None:
            raise RuntimeError("the node was not started")
        return self._run_dir

    def _stop_running(self) -> None:
        with contextlib.ExitStack() as steps:  # last in, first out; each runs though another failed
            steps.callback(self._remove_run_dir)
            if self.preparation is not None:
                steps.callback(self.preparation.clear_leftovers)
                steps.callback(self.preparation.close)
                if self.enclaves is not None:
                    steps.callback(self.enclaves.close)
                steps.callback(abandon_open_visits, self.visits, reason="the node was stopped")
            if self.supernode is not None:
                steps.callback(self.supernode.close)
            steps.callback(self.visits.admission.refusals.settle, closing=True)
            if self._regularly is not None:
                steps.callback(self._regularly.close)
            steps.callback(self.pulls.close)
            steps.callback(self.fhir_api.close)
        log.info("node stopped", extra={"facts": {"node": self.settings.name}})

    def _make_run_dir(self) -> None:
        """Short, because a Unix socket's path has 108 bytes at most; private; its predecessor is removed."""
        with contextlib.suppress(OSError):
            old_dir = Path(self.files.run_dir.read_text().strip())
            if old_dir.name.startswith("vht-") and old_dir.parent == Path(tempfile.gettempdir()) and old_dir.is_dir():
                shutil.rmtree(old_dir, ignore_errors=True)
        self._run_dir = Path(tempfile.mkdtemp(prefix="vht-"))
        self.files.run_dir.write_text(f"{self._run_dir}\n")

    def _remove_run_dir(self) -> None:
        shutil.rmtree(self.run_dir, ignore_errors=True)
        self.files.run_dir.unlink(missing_ok=True)
        self._run_dir = None

    def _enclave_host(self) -> Enclaves:
        from connector.enclave.host import EnclaveHost

        return EnclaveHost(
            self.run_dir, on_lost=self._enclave_lost, start_timeout_s=self.settings.enclave_start_timeout_s
        )

    def _enclave_lost(self, visit_id: str, error: VhtError) -> None:
        if self.preparation is not None:
            self.preparation.lost(visit_id, error)

    @staticmethod
    def _cohort_builder() -> CohortBuilder:
        from connector.views import build_cohort

        return build_cohort

    # --- data ---------------------------------------------------------------------------------------------------

    def ingest(
        self,
        folder: Path,
        *,
        replace: bool = False,
        deletions: Deletions | None = None,
        source: str | None = None,
        actor: Actor | None = None,
    ) -> dict[str, Any]:
        """Take in a folder of FHIR NDJSON, or ``replace`` what is held by it. The report, in numbers."""
        return self.intakes.take(folder, replace=replace, deletions=deletions, source=source, actor=actor)

    def opt_out(
        self, patient_id: str, *, since: datetime | None = None, actor: Actor | None = None, ahead: bool = False
    ) -> None:
        """Record that a patient opted out, effective ``since`` (now). ``patient_id``: or a reference to the patient.

        Raises InputError VHT-INPUT-PATIENT-ID for what names no patient, NotFoundError VHT-INPUT-PATIENT for one that
        the node does not hold, unless it is recorded ``ahead`` of the data.
        """
        subject, now = self._subject(patient_id), self.clock()
        since = since or now
        if not ahead:
            require_held(self.files.fhir, subject)
        with self.steps.step() as step:
            if opt_out(step.session, subject, since, now):
                facts = (actor or system_user()).facts()
                step.record(OptOutRecorded(subject=subject, since=since.isoformat(), **facts))

    def withdraw_opt_out(self, patient_id: str, *, at: datetime | None = None, actor: Actor | None = None) -> bool:
        """Record that a patient withdrew the opt-out, from now at the earliest. False where none was in force."""
        subject, now = self._subject(patient_id), self.clock()
        at = at or now
        with self.steps.step() as step:
            if not withdraw(step.session, subject, at, now):
                return False
            facts = (actor or system_user()).facts()
            step.record(OptOutWithdrawn(subject=subject, until=at.isoformat(), **facts))
        return True

    def _subject(self, patient: str) -> str:
        return subject_key(self.secret.subject_key, patient_named(patient))

    def summary(self) -> dict[str, Any]:
        """Rounded counts for the catalogue."""
        return dataset_summary(self.files.fhir, smallest_cell=self.settings.smallest_cell)

    # --- telling ------------------------------------------------------------------------------------------------

    def visit(self, visit_id: str) -> dict[str, Any]:
        """What an operator decides on; while a visit waits, with its columns that the data can never fill, or None
        where that cannot be told. Raises NotFoundError."""
        visit = self.overview.visit(visit_id)
        asked, columns = visit["component"], visit["request"]["columns"]
        unfilled: list[dict[str, Any]] | None = []
        if visit["state"] == "requested":
            try:
                unfilled = self.unfilled.of_study(asked["digest"], asked["profile"], columns)
            except VhtError as error:
                log.warning("which columns the data fill cannot be told", extra={"facts": {"code": error.code}})
                unfilled = None
        return {**visit, "unfilled": unfilled}

    @cached_property
    def identity(self) -> dict[str, Any]:
        public = self.files.supernode_key.with_suffix(".pub")
        return {
            "name": self.settings.name,
            "evidence_key": self.key.public.jwk(),
            "supernode_key": public.read_text().strip(),
        }

    def status(self) -> dict[str, Any]:
        """What an operator asks first."""
        states = [visit.state for visit in self.visits.all()]
        head = self.evidence.head()
        return {
            "name": self.settings.name,
            "running": self._run_dir is not None,
            "outward": self.settings.outward_url,
            "internal": self.settings.internal_url,
            "dataset": {"id": self.settings.dataset.id, **self.summary()},
            "visits": {state: states.count(state) for state in sorted(set(states))},
            "isolation": isolation_status(self.settings, offered_isolation()),
            "sources": self.pulls.described(),
            "budget": self.overview.budget(),
            "evidence": {"entries": head.size if head else 0, "root": head.root if head else None},
            "supernode": self.supernode.status() if self.supernode else None,
            "coordinator": self.settings.coordinator.address if self.settings.coordinator else None,
        }
