"""Offline verification of an evidence bundle with nothing but trusted public keys.

Order: the seal over all bytes; permit; study; status lists; each node's log (signatures, hashes, legal order,
ledger recomputed, permit good at every round); the coordinator's account against the logs; receipts; outputs; releases,
and whether they follow from the outputs. The seal protects against everybody but the coordinator; the nodes' own
signatures protect against the coordinator.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vht_federate.domain.budget import PrivacyEvent
from vht_federate.domain.permit import Permit
from vht_federate.domain.study import StudyRequest
from vht_federate.errors import VerificationError, VhtError
from vht_federate.evidence.bundle import open_bundle, read_statement_file
from vht_federate.evidence.client_record import clients_registered
from vht_federate.evidence.finding import Check, broken
from vht_federate.evidence.isolation_check import weaker_enclaves
from vht_federate.evidence.ledger_check import Compose, check_ceiling, check_ledger
from vht_federate.evidence.node_log import NodeLog, read_node_log
from vht_federate.evidence.output_check import check_derived, read_outputs
from vht_federate.evidence.query_record import queries_drawn
from vht_federate.evidence.release_check import check_releases
from vht_federate.evidence.run_check import RunClaims, check_run, read_run
from vht_federate.evidence.statement_check import possible_spends
from vht_federate.evidence.status_check import SeenStatus, check_covered, check_rounds, read_statuses
from vht_federate.evidence.trace import TraceLine, trace_of
from vht_federate.evidence.trust import TrustFile
from vht_federate.evidence.visit_record import VisitRecord, spent_under_permit, visit_records
from vht_federate.packaging.statement import reported_gradient_engines
from vht_federate.permits.check import check_request, read_permit, read_study
from vht_federate.privacy.accounting import epsilon_by_population
from vht_federate.signing.keys import PublicKey
from vht_federate.signing.strict_json import read_json

__all__ = ["TrustFile", "Verification", "verify_bundle"]


@dataclass(frozen=True)
class Verification:
    """A bundle that holds. ``epsilon``: node -> population -> epsilon of this run, recomputed from the node's log.

    Of a node without a log in the bundle it is a bound: the cost of every call that the run began.
    """

    sha256: str  # of the bundle's manifest.json
    permit: Permit
    study: StudyRequest
    run: RunClaims
    epsilon: dict[str, dict[str, float]]
    entries: dict[str, int]  # node -> entries of its log
    releases: dict[str, str]  # kind -> sha256 of its manifest
    checks: tuple[Check, ...]
    notes: tuple[str, ...]  # what could not be verified, and why that is no failure
    trace: tuple[TraceLine, ...]
    logs: Mapping[str, NodeLog]  # of each node, as verified

    def as_dict(self) -> dict[str, Any]:
        """The JSON that ``vht audit verify --json`` prints."""
        return {
            "verified": True,
            "sha256": self.sha256,
            "permit_id": self.permit.permit_id,
            "study_id": self.study.study_id,
            "state": self.run.state,
            "participants": self.run.present(),
            "epsilon": max((max(epsilons.values()) for epsilons in self.epsilon.values()), default=0.0),
            "delta": self.study.plan.delta,
            "epsilon_by_node": self.epsilon,
            "entries": sum(self.entries.values()),
            "entries_by_node": self.entries,
            "releases": self.releases,
            "checks": [{"where": check.where, "what": check.what} for check in self.checks],
            "notes": list(self.notes),
            "trace": [line.as_dict() for line in self.trace],
        }


def verify_bundle(folder: Path, trust: TrustFile, *, compose: Compose = epsilon_by_population) -> Verification:
    """Raises VerificationError (exit 4) at the first thing that does not hold, naming file and entry."""
    sealed = open_bundle(folder, trust.coordinator_key)
    audit = _Audit(folder, trust, compose)
    audit.note("manifest.json", f"signed by the coordinator; all {len(sealed.manifest['files'])} files are unchanged")
    audit.read_papers()
    if (sealed.manifest.get("study_id"), sealed.manifest.get("permit_id")) != (
        audit.request.study_id,
        audit.permit.permit_id,
    ):
        raise broken("manifest.json", "names another study or another permit than the bundle holds", "BUNDLE")
    audit.read_logs()
    audit.compare_run()
    audit.check_receipts()
    releases = audit.check_releases()
    return Verification(
        sha256=sealed.sha256,
        permit=audit.permit,
        study=audit.request,
        run=audit.run,
        epsilon=audit.spent,
        entries={name: log.size for name, log in audit.logs.items()},
        releases=releases,
        checks=tuple(audit.checks),
        notes=tuple(audit.notes),
        trace=trace_of(audit.permit, audit.request, audit.statuses, audit.logs.values()),
        logs=audit.logs,
    )


@dataclass
class _Audit:
    """The verification under way."""

    folder: Path
    trust: TrustFile
    compose: Compose
    checks: list[Check] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    logs: dict[str, NodeLog] = field(default_factory=dict)
    records: dict[str, dict[str, VisitRecord]] = field(default_factory=dict)
    spent: dict[str, dict[str, float]] = field(default_factory=dict)
    visit_records: Mapping[str, VisitRecord] = field(default_factory=dict)
    permit: Permit = field(init=False)
    request: StudyRequest = field(init=False)
    run: RunClaims = field(init=False)
    statuses: tuple[SeenStatus, ...] = ()

    def note(self, where: str, what: str) -> None:
        self.checks.append(Check(where, what))

    def read_papers(self) -> None:
        """Permit, study, status lists, run.json."""
        with _naming("permit.jwt", "PERMIT"):
            self.permit = read_permit(read_statement_file(self.folder, "permit.jwt"), self.trust.issuer_key)
        self.note("permit.jwt", f"signed by the trusted issuer: {self.permit.permit_id}")
        with _naming("user.pub.json", "STUDY"):
            user = PublicKey.from_jwk(read_json((self.folder / "user.pub.json").read_bytes()))
        with _naming("study.jws", "STUDY"):
            self.request = read_study(read_statement_file(self.folder, "study.jws"), self.permit, user)
            check_request(self.permit, self.request, compose=self.compose)
        self.note("study.jws", "signed by a data user of the permit, and within it")
        self.statuses = read_statuses(self.folder, self.trust.issuer_key)
        self.note("status", f"{len(self.statuses)} status lists signed by the issuer")
        self.run = read_run((self.folder / "run.json").read_bytes())

    def read_logs(self) -> None:
        """Every node's log by itself."""
        for path in sorted((self.folder / "nodes").glob("*.json")):
            file, name = f"nodes/{path.name}", path.stem
            key = self.trust.node_key(name)
            if key is None or name not in self.run.nodes:
                raise broken(file, "belongs to a node that is not in the trust file or not in the run", "LOG")
            log = read_node_log(file, path.read_bytes(), name, self.permit.permit_id, key)
            self.logs[name], self.records[name] = log, visit_records(log)
            self.note(file, f"signed by {name}; all {log.size} entries hashed again; legal order")
            self._note_clients(file, log)
            for record in self.records[name].values():
                check_ledger(record, self.compose)
                check_rounds(record, self.permit, self.statuses)
            total = check_ceiling(file, self.permit, self.records[name].values(), self.compose, queries_drawn(log))
            self.notes.extend(weaker_enclaves(self.records[name].values(), self.permit))
            begun = sum(len(record.begun) for record in self.records[name].values())
            self.note(
                file,
                f"ledger recomputed from {begun} rounds: epsilon {max(total.values()):.4f} of {self.permit.epsilon:g}; "
                "permit good at every round",
            )
        for records in self.records.values():
            for record in records.values():
                check_covered(record, self.statuses)
        self.note(self.statuses[-1].file, "issued after the last round, with no lower serial than any node relied on")

    def _note_clients(self, file: str, log: NodeLog) -> None:
        clients = clients_registered(log)
        if clients:
            exports = sum(client.exports for client in clients.values())
            revoked = sum(client.revoked for client in clients.values())
            self.note(
                file,
                f"{len(clients)} programs of the hospital read under this permit over its local FHIR API ({revoked} of "
                f"them revoked); {exports} exports",
            )

    def compare_run(self) -> None:
        self.visit_records = check_run(self.run, self.permit, self.request, self.records)
        outputs = sum(len(self.run.outputs_of(name)) for name in self.visit_records)
        self.note("run.json", f"{outputs} outputs, each in its node's log under the same digest, and none besides")
        for name, node in sorted(self.run.nodes.items()):
            record = self.visit_records.get(name)
            if record is not None:
                self.spent[name] = self._cost(record.events())
                if node.lost:
                    self.notes.append(f"{name}: the run lost it ({node.lost}); its log holds")
            elif name in self.logs:
                visits = [visit for visit in self.records[name].values() if self._of_this_study(visit)]
                self.spent[name] = self._cost(spent_under_permit(visits))
                lost = node.lost or "it took no part"
                self.notes.append(f"{name}: with a log that does not hold its visit; the run lost it ({lost})")
            else:
                self._bound(name, node.lost or "it took no part")

    def _cost(self, events: Sequence[PrivacyEvent]) -> dict[str, float]:
        return dict(self.compose(events, self.request.plan.delta))

    def _of_this_study(self, record: VisitRecord) -> bool:
        return record.requested is not None and record.requested.study_id == self.request.study_id

    def _bound(self, name: str, lost: str) -> None:
        """A node whose log is not here counts as if it had begun every call of the run: only its log could say less."""
        plan, used = self.request.plan, self.run.outputs_of(name)
        claimed = self._cost([event for call in used for event in plan.events_of(*call)])
        begun = {(round_.job, round_.round) for round_ in self.run.rounds}
        begun |= {call for record in self.visit_records.values() for call in record.begun}
        self.spent[name] = self._cost(
            [event for call in plan.calls() if call in begun for event in plan.events_of(*call)]
        )
        self.notes.append(
            f"{name}: without its log; the run lost it ({lost}); by the coordinator's account it gave {len(used)} "
            f"outputs for epsilon {max(claimed.values()):.4f}, which nobody but the coordinator says: counted as "
            f"{max(self.spent[name].values()):.4f}, as if it had begun every call of the run"
        )

    def check_receipts(self) -> None:
        """Every receipt is kept by its node's log; one that the node gave and the bundle lacks is noted."""
        promised: dict[str, frozenset[int]] = {}
        for path in sorted((self.folder / "receipts").glob("*.json")):
            file, name = f"receipts/{path.name}", path.stem
            key = self.trust.node_key(name)
            if key is None:
                raise broken(file, "belongs to a node that is not in the trust file", "RECEIPT")
            if name in self.logs:
                indices = self.logs[name].check_receipts(file, path.read_bytes(), key)
                promised[name] = frozenset(indices)
                self.note(file, f"{len(indices)} receipts of {name} are kept by its log")
            else:
                self.notes.append(f"{file}: not compared, because the log of {name} is not in the bundle")

        for name, record in self.visit_records.items():
            ends = [record.closed[0]] if record.closed else []
            given = [entry for entry, _ in record.acknowledged] + ends
            missing = [entry for entry in given if entry.index not in promised.get(name, frozenset())]
            if missing:
                kinds = ", ".join(f"{entry.kind} (entry {entry.index})" for entry in missing)
                self.notes.append(
                    f"receipts/{name}.json: without a receipt of {kinds}: whether the log of {name} was shortened "
                    "since then, nobody can tell by this bundle; ask the coordinator for it"
                )

    def check_releases(self) -> dict[str, str]:
        outputs = read_outputs(self.folder, self.run)
        count = sum(map(len, outputs.values()))
        self.note("outputs", f"{count} outputs of nodes, each what run.json and the node's log name by its digest")
        plan, run = self.request.plan, self.run
        engines = reported_gradient_engines(outputs.get(("train", 1), {}))
        spends = possible_spends(run, plan, self.request.study_id, self.visit_records, self.records)
        key = self.trust.coordinator_key
        sealed = check_releases(
            self.folder, key, self.permit, self.request, run, self.visit_records, engines, spends, self.compose
        )
        for kind, release in sealed.items():
            where = release.folder.relative_to(self.folder).as_posix()
            what = f"{kind} {release.sha256[:12]}… is whole and acknowledged by every node that took part to the end"
            self.note(where, what)
            self.note(
                f"{where}/privacy_statement.json",
                "computed again from plan, logs and outputs: the same, word for word; the accountant's library and the "
                "source of randomness are the coordinator's own words",
            )
        for where, what in check_derived(self.folder, plan, run, self.visit_records, outputs, sealed):
            self.note(where, what)
        return {kind: release.sha256 for kind, release in sealed.items()}


class _naming:  # noqa: N801 - a context manager reads as a verb
    """Turn any typed error into a VerificationError that names ``file``."""

    def __init__(self, file: str, code: str) -> None:
        self._file, self._code = file, code

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, VhtError) and not isinstance(error, VerificationError):
            raise broken(self._file, f"{error.message} ({error.code})", self._code) from error
        if isinstance(error, ValueError | OSError):
            raise broken(self._file, "cannot be read", self._code) from error
