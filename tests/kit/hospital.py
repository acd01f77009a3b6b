"""A hospital for tests: a real issuer over HTTPS, a real node in a state directory, real FHIR lines, and users."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import uvicorn
from sqlalchemy.exc import IntegrityError

from connector.enclave.visit import EnclaveInfo, Gate, VisitSpec
from connector.node import Node
from connector.provision import provision
from connector.settings import DatasetSettings, NodeSettings
from deploy.pki import Issued, issue_certificate, make_authority
from vht_federate.authority.app import build_app
from vht_federate.authority.store import Register
from vht_federate.components.registry import find_component
from vht_federate.domain.budget import PrivacyEvent
from vht_federate.domain.isolation import IsolationLevel
from vht_federate.domain.law import DataCategory, ProhibitedUse, Purpose
from vht_federate.domain.permit import PERMIT_TYP, DataUser, Permit
from vht_federate.domain.plan import EvaluationPlan, StudyPlan, TrainingPlan
from vht_federate.domain.study import STUDY_TYP, ComponentRef, StudyRequest
from vht_federate.errors import VhtError
from vht_federate.signing.keys import SigningKey
from vht_federate.signing.possession import PresentedProof, prove
from vht_federate.tcp_ports import LOOPBACK, free_port, free_ports

DATASET = "urn:vht:hospital-1:ehr"
COMPONENT = find_component("cardio-risk")
PROFILE = "cardiometabolic"
COLUMNS = COMPONENT.component.columns(PROFILE)
CANARY = "Zebedee"
PLAN = StudyPlan(
    delta=1e-5,
    training=TrainingPlan(
        rounds=2, local_steps=2, sampling_rate=0.2, clipping_norm=1.0, noise_multiplier=3.0, learning_rate=0.5
    ),
    evaluation=EvaluationPlan(noise_multiplier=8.0),
)


class Issuer:
    """The permit issuer's own application over TLS, in a thread; ``stop`` makes it unreachable."""

    def __init__(self, folder: Path, tls: Issued) -> None:
        self.key = SigningKey.create(folder / "issuer.key")
        self.register = Register(folder / "authority.sqlite")
        self.port, self._tls = free_port(), tls
        self.validity_s = 60.0
        self.skew = timedelta(0)
        self.start()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    def start(self) -> None:
        app = build_app(
            self.register,
            self.key,
            hdab="HDAB",
            status_validity_s=self.validity_s,
            clock=lambda: datetime.now(UTC) + self.skew,
        )
        config = uvicorn.Config(
            app,
            host="127.0.0.1",
            port=self.port,
            ssl_certfile=self._tls.certificate,
            ssl_keyfile=self._tls.key,
            log_level="error",
            ws="none",
            headers=[("Connection", "close")],  # no idle connection holds up the end of a test
            loop="asyncio",
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        await_that(lambda: self._server.started)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(10)

    def revoke(self, permit: str) -> None:
        self.register.revoke(permit, datetime.now(UTC), "test")


def await_that(condition: Any, seconds: float = 300.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


@dataclass
class PaperEnclaves:
    """Enclaves that only remember: the gate is what these tests are about."""

    started: dict[str, tuple[VisitSpec, Gate]] = field(default_factory=dict)
    stopped: list[str] = field(default_factory=list)
    refuse: VhtError | None = None

    def start(self, visit: VisitSpec, component_dir: Path, gate: Gate) -> EnclaveInfo:  # noqa: ARG002
        if self.refuse:
            raise self.refuse
        assert (visit.cohort / "cohort.safetensors").exists()
        self.started[visit.visit] = (visit, gate)
        return EnclaveInfo(visit.visit, 1, visit.component.digest, IsolationLevel.AUDIT_HOOK, ("paper",), {}, "cpu")

    def stop(self, visit_id: str) -> None:
        self.stopped.append(visit_id)

    def close(self) -> None:
        return None


@dataclass
class Hospital:
    """A provisioned node with its surroundings."""

    root: Path
    issuer: Issuer
    tls: Issued
    state: Path
    user: SigningKey = field(default_factory=SigningKey.generate)
    coordinator: SigningKey = field(default_factory=SigningKey.generate)
    enclaves: PaperEnclaves = field(default_factory=PaperEnclaves)

    @contextmanager
    def open(self, *, start: bool = True) -> Iterator[Node]:
        with Node(self.state) as node:
            if start:
                node.start(enclaves=self.enclaves)
            yield node

    def permit(self, *, key: SigningKey | None = None, **changes: Any) -> str:
        """A permit signed by the issuer (or ``key``)."""
        now = datetime.now(UTC)
        fields: dict[str, Any] = {
            "permit_id": "permit-1",
            "hdab": "HDAB",
            "application_ref": "application-1",
            "issued_at": now - timedelta(days=1),
            "not_before": now - timedelta(days=1),
            "expires_at": now + timedelta(days=30),
            "categories": (DataCategory.EHR,),
            "dataset_ids": (DATASET,),
            "columns": COLUMNS,
            "purposes": (Purpose.RESEARCH_ALGORITHMS,),
            "purpose_text": "Risk <b>models</b>",
            "controller": "Institute",
            "data_users": (DataUser(name="Institute", kind="academic", kid=self.user.public.kid),),
            "prohibited_uses": tuple(ProhibitedUse),
            "component_digests": (COMPONENT.digest(),),
            "epsilon": 3.0,
            "delta": 1e-5,
            "minimum_nodes": 1,
            "minimum_cohort": 10,
            **changes,
        }
        permit = Permit.model_validate(fields)
        token = (key or self.issuer.key).sign(permit.claims(), typ=PERMIT_TYP)
        if key is None:
            with suppress(IntegrityError):
                self.issuer.register.add(permit, token)
        return token

    def study(self, *, key: SigningKey | None = None, **changes: Any) -> str:
        user = key or self.user
        component = COMPONENT.component
        fields: dict[str, Any] = {
            "study_id": "study-1",
            "title": "A study",
            "created_at": datetime.now(UTC),
            "permit_id": "permit-1",
            "user_kid": user.public.kid,
            "purpose": Purpose.RESEARCH_ALGORITHMS,
            "categories": (DataCategory.EHR,),
            "dataset_ids": (DATASET,),
            "component": ComponentRef(
                name=component.name, version=component.version, digest=COMPONENT.digest(), profile=PROFILE
            ),
            "columns": COLUMNS,
            "plan": PLAN,
            "coordinator_key": self.coordinator.public.jwk(),
            **changes,
        }
        return user.sign(StudyRequest.model_validate(fields).claims(), typ=STUDY_TYP)

    def proof(self, method: str = "POST", path: str = "/visits", **changes: Any) -> PresentedProof:
        """The coordinator's proof for one request to this node; ``changes``: another key, recipient, token or time."""
        about = {"key": self.coordinator, "recipient": DATASET, "now": datetime.now(UTC), **changes}
        return PresentedProof(method, path, prove(about.pop("key"), method, f"https://node{path}", **about))

    def headers(self, method: str = "POST", path: str = "/visits", token: str | None = None) -> dict[str, str]:
        """Of a request by the coordinator: its proof, and the token of a visit."""
        proof = {"DPoP": self.proof(method, path, token=token).proof}
        return proof if token is None else {**proof, "Authorization": f"DPoP {token}"}

    def log(self) -> list[dict[str, Any]]:
        lines = (self.state / "evidence" / "log.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    def kinds(self) -> list[str]:
        return [entry["kind"] for entry in self.log()]

    def cohort_folders(self) -> list[Path]:
        return list((self.state / "visits").glob("*"))


def make_hospital(root: Path, *, issuer: Issuer | None = None, **settings: Any) -> Hospital:
    """Provision a node below ``root``, with its own issuer unless one is given."""
    now = datetime.now(UTC)
    make_authority(root / "pki", now=now)
    tls = issue_certificate(root / "pki", "hospital-1", root / "tls", now=now)
    issuer = issuer or Issuer(root, tls)
    outward, internal = free_ports(LOOPBACK, LOOPBACK)
    fields: dict[str, Any] = {
        "name": "hospital-1",
        "port": outward,
        "internal_port": internal,
        "certificate": tls.certificate,
        "key": tls.key,
        "ca": tls.ca,
        "issuer_url": issuer.url,
        "dataset": DatasetSettings(id=DATASET, categories=(DataCategory.EHR,)),
        "epsilon_cap": 3.0,
        "enclave_isolation": IsolationLevel.AUDIT_HOOK,  # whatever machine this is: most tests start none
        **settings,
    }
    state = root / "state"
    provision(state, NodeSettings(**fields), root / "issuer.pub.json")
    return Hospital(root, issuer, tls, state)


def write_fhir(folder: Path, patients: int = 40) -> Path:
    """FHIR R4 lines of ``patients`` adults; the surname is a canary."""
    folder.mkdir(parents=True)
    people, observations, conditions = [], [], []
    for number in range(patients):
        name = f"p{number}"
        people.append(
            {
                "resourceType": "Patient",
                "id": name,
                "name": [{"family": CANARY}],
                "gender": "male" if number % 2 else "female",
                "birthDate": f"19{40 + number % 40}-05-17",
            }
        )
        observations.append(
            {
                "resourceType": "Observation",
                "id": f"o{number}",
                "status": "final",
                "code": {"coding": [{"system": "http://loinc.org", "code": "8480-6"}]},
                "subject": {"reference": f"Patient/{name}"},
                "effectiveDateTime": "2009-03-01T10:00:00Z",
                "valueQuantity": {
                    "value": 110.5 + number,
                    "unit": "mmHg",
                    "system": "http://unitsofmeasure.org",
                    "code": "mm[Hg]",
                },
            }
        )
        if number % 4 == 0:
            conditions.append(
                {
                    "resourceType": "Condition",
                    "id": f"c{number}",
                    "code": {"coding": [{"system": "http://snomed.info/sct", "code": "22298006"}]},
                    "subject": {"reference": f"Patient/{name}"},
                    "onsetDateTime": "2015-01-01",
                }
            )
    for kind, resources in (("Patient", people), ("Observation", observations), ("Condition", conditions)):
        text = "".join(json.dumps(resource) + "\n" for resource in resources)
        (folder / f"{kind}.ndjson").write_text(text)
    return folder


def ask(node: Node, hospital: Hospital, permit: str | None = None, study: str | None = None, **more: Any) -> Any:
    """Request a visit as a data user would. The visit's row."""
    papers = permit or hospital.permit(), study or hospital.study(), hospital.user.public.jwk()
    return node.visits.request(*papers, **{"proof": hospital.proof(now=node.clock()), **more})


def approved(node: Node, visit_id: str, operator: str = "Dr Ada") -> str:
    """Approve a visit and wait until it is prepared. The state it came to."""
    from connector.governance.operator_accounts import Actor

    node.visits.approve(visit_id, Actor(operator, "approver", "account"))
    await_that(lambda: node.visits.get(visit_id).state != "approved")
    return str(node.visits.get(visit_id).state)


def event(label: str = "train", noise: float = 3.0, rate: float = 0.2, steps: int = 2) -> PrivacyEvent:
    return PrivacyEvent(label=label, population="train", noise_multiplier=noise, sampling_rate=rate, steps=steps)
