"""Visits for tests of the enclave: a small cohort, a gate that writes down what it was asked, components to plant."""

import contextlib
import json
import socket
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save

from connector.enclave.isolation_probe import offered_isolation
from connector.enclave.visit import VisitSpec
from vht_federate.components.digest import ComponentFiles
from vht_federate.components.registry import find_component
from vht_federate.domain.plan import EvaluationPlan, StudyPlan, TrainingPlan
from vht_federate.domain.study import ComponentRef
from vht_federate.errors import VhtError
from vht_federate.framing import Call, Reply, call_enclave
from vht_federate.signing.canonical import sha256_hex

SHIPPED = find_component("cardio-risk")
PROFILE = "cardiometabolic"
CANARY = 31.4159265
PLAN = StudyPlan(
    delta=1e-5,
    training=TrainingPlan(
        rounds=3, local_steps=4, sampling_rate=0.3, clipping_norm=1.0, noise_multiplier=1.0, learning_rate=0.5
    ),
    evaluation=EvaluationPlan(noise_multiplier=4.0),
)
ZERO = {
    "linear.weight": np.zeros((1, 22), np.float32),
    "linear.bias": np.zeros(1, np.float32),
}


def write_cohort(folder: Path, patients: int = 120, *, seed: int = 0) -> None:
    rng = np.random.default_rng(seed)
    ports = SHIPPED.component.inputs(PROFILE)
    patient = np.repeat(np.arange(patients), rng.integers(1, 4, patients)).astype(np.int64)
    columns = [
        rng.uniform(*port.bounds, len(patient)) if port.bounds else rng.integers(0, 2, len(patient)) for port in ports
    ]
    values = np.stack(columns, axis=1).astype(np.float32)
    values[rng.random(values.shape) < 0.1] = np.nan
    values[:, 5] = CANARY
    outcome = (rng.random(len(patient)) < 0.3).astype(np.float32)
    bucket = rng.integers(0, 100, patients).astype(np.uint8)
    raw = save({"values": values, "outcome": outcome, "patient": patient, "bucket": bucket})
    folder.mkdir(parents=True)
    (folder / "cohort.safetensors").write_bytes(raw)
    manifest = {
        "component": "cardio-risk",
        "profile": PROFILE,
        "inputs": [port.name for port in ports],
        "sha256": sha256_hex(raw),
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))


def visit_spec(
    state: Path, visit: str = "v1", *, component: Path = SHIPPED.folder, plan: StudyPlan = PLAN
) -> VisitSpec:
    """What this machine gives is required: a test of the walls says what it needs of them."""
    folder = state / "visits" / visit
    write_cohort(folder / "cohort")
    ref = ComponentRef(
        name="cardio-risk", version="0.1.0", digest=ComponentFiles.read(component).digest, profile=PROFILE
    )
    return VisitSpec(
        visit=visit,
        study_id="study-1",
        component=ref,
        plan=plan,
        cohort=folder / "cohort",
        folder=folder,
        closed=state,
        isolation=offered_isolation().level,
    )


def planted(folder: Path, model: str) -> Path:
    """A component that differs from the shipped one by its code."""
    folder.mkdir(parents=True)
    for name, raw in SHIPPED_FILES.files.items():
        (folder / name).write_bytes(raw)
    (folder / "model.py").write_text(model)
    return folder


SHIPPED_FILES = ComponentFiles.read(SHIPPED.folder)


@dataclass
class RecordingGate:
    """Says yes, unless ``no`` names a question."""

    asked: list[tuple] = field(default_factory=list)
    no: dict[str, VhtError] = field(default_factory=dict)

    def _answer(self, *question) -> None:
        self.asked.append(question)
        if question[0] in self.no:
            raise self.no[question[0]]

    def begin(self, visit, job, round, request_sha256) -> None:
        self._answer("begin", visit, job, round, request_sha256)

    def release(self, visit, job, round, output_sha256, output_bytes) -> None:
        self._answer("release", visit, job, round, output_sha256, output_bytes)

    def refused(self, visit, job, round, code) -> None:
        self._answer("refused", visit, job, round, code)

    def kinds(self) -> list[str]:
        return [question[0] for question in self.asked]


@dataclass
class Courier:
    """Calls an enclave as the ClientApp does."""

    run_dir: Path
    visit: str = "v1"

    def call(self, job: str, round_: int, tensors=ZERO, *, params=None, visit=None, token=None) -> Reply:
        token = token or (self.run_dir / f"{self.visit}.token").read_text()
        body = tensors if isinstance(tensors, bytes) else save(tensors) if tensors else b""
        call = Call(visit or self.visit, job, round_, params or {}, body)
        return call_enclave(self.run_dir / f"{self.visit}.sock", token, call, timeout_s=60)

    def raw(self, data: bytes) -> bytes:
        """Send bytes as they are; whatever comes back until the enclave closes."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(300)
            sock.connect(str(self.run_dir / f"{self.visit}.sock"))
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            parts = b""
            with contextlib.suppress(ConnectionResetError):  # it closed with bytes of ours unread
                while chunk := sock.recv(1 << 16):
                    parts += chunk
        return parts


def weights_of(reply: Reply) -> dict[str, np.ndarray]:
    return load(reply.tensors)
