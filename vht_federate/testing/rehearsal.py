"""A whole study without hospitals: real permits, logs, receipts, seals and signatures over made-up outputs.

For tests of whatever reads evidence: ``Rehearsal(folder).play().bundle(folder / "bundle")``. Each step can be taken
alone, left out or spoiled.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from vht_federate import components
from vht_federate.components.contract import read_component
from vht_federate.components.digest import component_digest
from vht_federate.domain.permit import PERMIT_TYP, STATUS_TYP, Permit, StatusList
from vht_federate.domain.plan import CohortPlan, EvaluationPlan, StudyPlan, TrainingPlan
from vht_federate.domain.study import STUDY_TYP, ComponentRef, StudyRequest
from vht_federate.evidence.bundle import BundleParts, write_bundle
from vht_federate.evidence.entry import LogEntry
from vht_federate.evidence.log import EvidenceLog
from vht_federate.evidence.trust import TrustFile
from vht_federate.packaging.card import CardFacts
from vht_federate.packaging.cohort import seal_cohort
from vht_federate.packaging.component import write_package
from vht_federate.packaging.statement import cohort_share, reported_gradient_engines
from vht_federate.privacy.accounting import epsilon_by_population
from vht_federate.privacy.statement import privacy_statement
from vht_federate.signing.canonical import digest_of
from vht_federate.signing.keys import SigningKey
from vht_federate.testing.clock import FixedClock
from vht_federate.testing.outputs import MadeUpOutputs

__all__ = ["REHEARSED_PLAN", "Rehearsal"]

PROFILE = "cardiometabolic"
COMPONENT = Path(components.__file__).parent / "cardio_risk"
REHEARSED_PLAN = StudyPlan(
    delta=1e-5,
    training=TrainingPlan(
        rounds=2, local_steps=3, sampling_rate=0.25, clipping_norm=1.0, noise_multiplier=6.0, learning_rate=0.5
    ),
    evaluation=EvaluationPlan(noise_multiplier=12.0),
    cohort=CohortPlan(one_way_noise_multiplier=14.0, sketch_noise_multiplier=14.0, two_way_noise_multiplier=14.0),
)


@dataclass
class Rehearsal:
    """One study in ``root``. Every entry of every log moves the clock by a second."""

    root: Path
    names: tuple[str, ...] = ("hospital-1", "hospital-2", "hospital-3")
    plan: StudyPlan = REHEARSED_PLAN
    permit_fields: dict[str, Any] = field(default_factory=dict)
    names_coordinator: bool = True  # False: a study that names no coordinator's key
    clock: FixedClock = field(default_factory=FixedClock)
    run: dict[str, Any] = field(default_factory=dict)
    receipts: dict[str, list[str]] = field(default_factory=dict)
    statuses: dict[str, str] = field(default_factory=dict)
    component: Path | None = None
    cohort: Path | None = None
    isolation: str | None = "sandbox"  # of every node's enclave, as its log says

    def __post_init__(self) -> None:
        self.issuer, self.user, self.coordinator = (SigningKey.generate() for _ in range(3))
        self.node_keys = {name: SigningKey.generate() for name in self.names}
        self.logs = {
            name: EvidenceLog(self.root / "logs" / name, key, name, self._tick) for name, key in self.node_keys.items()
        }
        self.outputs = MadeUpOutputs(self.plan)
        self.permit = self._permit()
        self.request = self._request()
        self.revoked_at: datetime | None = None

    def _tick(self) -> datetime:
        self.clock.advance(1)
        return self.clock.now

    def __enter__(self) -> "Rehearsal":
        return self

    def __exit__(self, *_: object) -> None:
        for log in self.logs.values():
            log.close()

    # --- papers -------------------------------------------------------------------------------------------------

    def _permit(self) -> Permit:
        component, now = read_component(COMPONENT), self.clock.now
        fields: dict[str, Any] = {
            "permit_id": "permit-rehearsal-1",
            "hdab": "Rehearsed access body",
            "application_ref": "application-1",
            "issued_at": now,
            "not_before": now,
            "expires_at": now + timedelta(days=30),
            "categories": ["51.1.a"],
            "dataset_ids": [_dataset(name) for name in self.names],
            "columns": component.columns(PROFILE),
            "purposes": ["53.1.e.ii"],
            "purpose_text": "rehearse",
            "controller": "Institute",
            "data_users": [{"name": "Institute", "kind": "academic", "kid": self.user.public.kid}],
            "component_digests": [component_digest(COMPONENT)],
            "epsilon": 3.0,
            "delta": self.plan.delta,
            "minimum_nodes": 2,
        }
        return Permit.model_validate({**fields, **self.permit_fields})

    def _request(self) -> StudyRequest:
        component, digest = read_component(COMPONENT), component_digest(COMPONENT)
        return StudyRequest(
            study_id="study-rehearsal",
            title="A rehearsal",
            created_at=self.clock.now,
            permit_id=self.permit.permit_id,
            user_kid=self.user.public.kid,
            purpose=self.permit.purposes[0],
            categories=self.permit.categories,
            dataset_ids=self.permit.dataset_ids,
            component=ComponentRef(name=component.name, version=component.version, digest=digest, profile=PROFILE),
            columns=component.columns(PROFILE),
            plan=self.plan,
            coordinator_key=self.coordinator.public.jwk() if self.names_coordinator else None,
        )

    def status(self, name: str) -> None:
        """Keep the issuer's status list of this moment as ``status/<name>.jwt``."""
        revoked = {self.permit.permit_id: self.revoked_at} if self.revoked_at else {}
        now = self.clock.now
        listed = StatusList(
            hdab=self.permit.hdab,
            issued_at=now,
            valid_until=now + timedelta(seconds=60),
            serial=7 + len(revoked),
            revoked=revoked,
        )
        self.statuses[name] = self.issuer.sign(listed.claims(), typ=STATUS_TYP)

    # --- the study, step by step ----------------------------------------------------------------------------------

    def play(self, *, lost: dict[str, tuple[str, int]] | None = None) -> "Rehearsal":
        """All of it. ``lost``: node -> the call from which on it is gone."""
        self.status("start")
        self.negotiate()
        gone: set[str] = set()
        for job, number in self.plan.calls():
            gone |= {name for name, call in (lost or {}).items() if call == (job, number)}
            self.round(job, number, [name for name in self.names if name not in gone])
        for name in gone:
            self.run["nodes"][name]["lost"] = "it did not answer within the deadline"
        self.release()
        self.close()
        self.status("end")
        return self

    def log(self, name: str, kind: str, body: dict[str, Any]) -> LogEntry:
        visit = f"visit-{name}"
        return self.logs[name].append(kind, body, permit_id=self.permit.permit_id, visit=visit)

    def negotiate(self) -> None:
        """Requests, checks, approvals, reservations and enclaves at every node; another permit's entry in between."""
        request, events = self.request, self.plan.events()
        digest = request.component.digest
        dumped = [event.model_dump(mode="json") for event in events]
        for name in self.names:
            self.logs[name].append("node.started", {"version": "0"})
            requested: dict[str, Any] = {"study_id": request.study_id, "request_digest": digest_of(request.claims())}
            requested |= {"user_kid": request.user_kid, "component": request.component.model_dump(mode="json")}
            requested |= {"coordinator_kid": self.coordinator.public.kid} if self.names_coordinator else {}
            self.log(name, "visit.requested", {**requested, "plan": request.plan.model_dump(mode="json")})
            self.logs[name].append("permit.checked", {"outcome": "refused"}, permit_id="permit-other")
            checked = {"permit_id": self.permit.permit_id, "outcome": "accepted", "code": None, "status_serial": 7}
            self.log(name, "permit.checked", {**checked, "request_digest": requested["request_digest"]})
            self.log(name, "visit.approved", {"operator": f"operator of {name}", "digest": digest})
            reserved = {"events": dumped, "epsilon_if_spent": epsilon_by_population(events, self.plan.delta)}
            self.log(name, "budget.reserved", {**reserved, "delta": self.plan.delta, "dataset": _dataset(name)})
            built = {"columns": list(request.columns), "minimum_cohort_met": True}
            self.log(name, "cohort.built", {**built, "opt_outs_as_of": self.permit.issued_at.isoformat()})
            self.log(name, "enclave.started", {"component_digest": digest, "isolation": self.isolation})
        nodes = {name: {"visit": f"visit-{name}", "lost": None} for name in self.names}
        self.run = {"study_id": request.study_id, "state": "completed", "nodes": nodes, "rounds": [], "releases": {}}

    def round(self, job: str, number: int, names: Iterable[str]) -> None:
        """One call at each of ``names``."""
        outputs: dict[str, str] = {}
        for name in names:
            self.begin(name, job, number)
            outputs[name] = self.release_round(name, job, number)
        self.run["rounds"].append({"job": job, "round": number, "outputs": outputs})
        if job == "train":
            self.outputs.combine(number, list(outputs))
            self.run["patients_noised"] = self.outputs.patients_noised
        if job == "evaluate":
            self.run["evaluation"] = self.outputs.evaluation()

    def begin(self, name: str, job: str, number: int, *, status_serial: int = 7) -> LogEntry:
        events = [event.model_dump(mode="json") for event in self.plan.events_of(job, number)]
        body: dict[str, Any] = {"job": job, "round": number, "dataset": _dataset(name)}
        body["request_sha256"] = self.outputs.request(f"visit-{name}", job, number)
        return self.log(name, "round.begun", {**body, "status_serial": status_serial, "events": events})

    def release_round(self, name: str, job: str, number: int) -> str:
        digest = self.outputs.answer(name, job, number)
        body = {"job": job, "round": number, "output_sha256": digest, "status_serial": 7}
        body |= {"epsilon": epsilon_by_population(self.spent(name), self.plan.delta), "delta": self.plan.delta}
        self.log(name, "round.released", body)
        return digest

    def spent(self, name: str) -> tuple[Any, ...]:
        """Events drawn at ``name``, by its log."""
        calls = [(e.body["job"], e.body["round"]) for e in self.logs[name].entries() if e.kind == "round.begun"]
        return tuple(event for call in calls for event in self.plan.events_of(*call))

    def present(self) -> list[str]:
        return [name for name in self.names if self.run["nodes"][name]["lost"] is None]

    def release(self) -> None:
        """A component package and a cohort, acknowledged by every node that is left."""
        statement = privacy_statement(
            self.plan,
            {name: self.spent(name) for name in self.names},
            reported_gradient_engines(self.outputs.replies.get(("train", 1), {})),
        )
        evaluation = self.outputs.evaluation()
        facts = CardFacts(
            study_id=self.request.study_id,
            permit_id=self.permit.permit_id,
            purpose="53.1.e.ii",
            created_at=self.clock.now,
            nodes=len(self.present()),
            rounds=self.plan.training.rounds,
            evaluation=evaluation["pooled"] or None,
            evaluation_intervals=evaluation["intervals"]["pooled"],
        )
        package = write_package(
            self.root / "package", COMPONENT, PROFILE, weights=self.outputs.weights, facts=facts,
            statement=statement, run={}, key=self.coordinator,
        )  # fmt: skip
        self.component, self.run["releases"]["component"] = package.folder, package.sha256
        if self.plan.cohort:
            self.run["releases"]["cohort"] = self._release_cohort(statement)
        for kind, digest in self.run["releases"].items():
            for name in self.present():
                entry = self.log(name, "release.acknowledged", {"kind": kind, "artifact_sha256": digest})
                self.receipts.setdefault(name, []).append(self.logs[name].receipt(entry))

    def _release_cohort(self, statement: dict[str, Any]) -> str:
        self.cohort = self.root / "cohort"
        (self.cohort / "fhir").mkdir(parents=True)
        (self.cohort / "marginals.safetensors").write_bytes(self.outputs.tables())
        tables = ("data.csv", "data.parquet", "codebook.json", "sdv_metadata.json")
        for name in (*tables, "sdmetrics_report.json", "data_card.md", "fhir/Patient.ndjson"):
            text = f"rehearsed {name}"
            (self.cohort / name).write_text((json.dumps(text) if name.endswith(".json") else text) + "\n")
        statement = {**statement, "release": cohort_share(self.plan).model_dump(mode="json")}
        (self.cohort / "privacy_statement.json").write_text(json.dumps(statement, indent=2) + "\n")
        facts = {
            "study_id": self.request.study_id,
            "permit_id": self.permit.permit_id,
            "component": self.request.component.model_dump(mode="json"),
            "tables_sha256": self.outputs.table_digests(),
        }
        return seal_cohort(self.cohort, facts, self.coordinator).sha256

    def close(self, names: Iterable[str] | None = None) -> None:
        """Close the visits of ``names`` (by default of every node that is left)."""
        for name in names if names is not None else self.present():
            spent = self.spent(name)
            body = {"reason": "the study ended", "state": "closed", "delta": self.plan.delta}
            body |= {"spent": [event.model_dump(mode="json") for event in spent]}
            entry = self.log(name, "visit.closed", {**body, "epsilon": epsilon_by_population(spent, self.plan.delta)})
            self.receipts.setdefault(name, []).append(self.logs[name].receipt(entry))

    # --- the bundle -----------------------------------------------------------------------------------------------

    @property
    def trust(self) -> TrustFile:
        nodes = {name: key.public for name, key in self.node_keys.items()}
        return TrustFile.of(self.issuer.public, self.coordinator.public, nodes)

    def parts(self, *, without: Iterable[str] = ()) -> BundleParts:
        """What goes into the bundle; the logs of ``without`` stay out."""
        left_out = set(without)
        return BundleParts(
            permit=self.issuer.sign(self.permit.claims(), typ=PERMIT_TYP),
            study=self.user.sign(self.request.claims(), typ=STUDY_TYP),
            user_key=self.user.public,
            statuses=self.statuses,
            nodes={name: log.export(self.permit.permit_id) for name, log in self.logs.items() if name not in left_out},
            run=json.dumps(self.run, indent=2).encode(),
            receipts=self.receipts,
            outputs=self.outputs.of(self.run["rounds"]),
            component=self.component,
            component_name=self.request.component.name,
            cohort=self.cohort,
        )

    def bundle(self, folder: Path, parts: BundleParts | None = None) -> Path:
        """Write and sign the bundle."""
        write_bundle(
            folder, parts or self.parts(), self.coordinator, study_id=self.request.study_id,
            permit_id=self.permit.permit_id, created_at=self.clock.now,
        )  # fmt: skip
        return folder


def _dataset(name: str) -> str:
    return f"urn:vht:{name}:ehr"
