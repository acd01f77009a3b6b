"""A run's directory: what was asked, how far it came, and everything needed to go on after a crash.

dispatch.json                    what to run, on which nodes (written once, before the first message)
run.json                         state, rounds, digests, who was lost and why (atomically replaced)
weights/round-000.safetensors    initial weights; -00N after round N
outputs/<job>-<round>/<node>.…   what each node released: .json (result) and .safetensors
server.pid                       of the ServerApp while it plays the rounds
study.pid                        of ``vht study run`` or ``resume`` while it sees to the run
result.json                      what the release came to, written last
"""

import json
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from vht_federate.domain.plan import StudyPlan
from vht_federate.errors import CohortError, InputError, RefusedError, RevokedError, VhtError, error_from_envelope
from vht_federate.files import READABLE, replace_file
from vht_federate.framing import Reply
from vht_federate.processes import PidFile
from vht_federate.signing.strict_json import read_json
from vht_federate.text import counted

__all__ = [
    "PID_FILE",
    "RESULT",
    "STUDY_PID",
    "Dispatch",
    "DispatchNode",
    "NodeState",
    "RoundState",
    "RunDirectory",
    "RunState",
]

PID_FILE = "server.pid"
STUDY_PID = "study.pid"
RESULT = "result.json"
State = Literal["requested", "running", "completed", "refused", "revoked", "stopped", "failed"]


class DispatchNode(BaseModel):
    """One hospital that approved: its name, its visit, its SuperNode."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    visit: str
    flower_node: int


class Dispatch(BaseModel):
    """All that a ServerApp needs. It never dispatches to a node outside ``nodes``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: str = "1"
    study_id: str
    plan: StudyPlan
    nodes: tuple[DispatchNode, ...] = Field(min_length=1)
    minimum_nodes: int = Field(ge=1)
    round_deadline_s: float = Field(gt=0)
    # Touched when messages were pushed. Runs of before named it doorbell; their nodes look every two seconds instead.
    message_notification: Path | None = Field(None, validation_alias=AliasChoices("message_notification", "doorbell"))
    replies: Path | None = None  # touched when a part of a reply arrived
    codebook: dict[str, Any] | None = None


class NodeState(BaseModel):
    """One node in a run; ``lost`` says why it no longer takes part."""

    model_config = ConfigDict(extra="forbid")

    flower_node: int
    visit: str
    rounds: list[str] = Field(default_factory=list)  # "train-1", … that this node answered
    lost: str | None = None
    code: str | None = None


class RoundState(BaseModel):
    """One finished phase: digests of what each node released, and how long it took."""

    model_config = ConfigDict(extra="forbid")

    job: str
    round: int
    outputs: dict[str, str]
    seconds: float
    finished_at: datetime


class RunState(BaseModel):
    """``run.json``. Public: counts in it were released under differential privacy."""

    model_config = ConfigDict(extra="forbid")

    schema_version: str = "1"
    study_id: str
    state: State
    reason: str = ""
    error: dict[str, str] | None = None
    nodes: dict[str, NodeState] = Field(default_factory=dict)
    rounds: list[RoundState] = Field(default_factory=list)
    patients_noised: dict[str, float] = Field(default_factory=dict)
    evaluation: dict[str, Any] | None = None
    releases: dict[str, str] = Field(default_factory=dict)  # kind -> sha256 of its manifest

    @property
    def ended(self) -> bool:
        return self.state not in ("requested", "running")

    def taking_part(self) -> list[str]:
        return [name for name, node in self.nodes.items() if node.lost is None]

    def lose(self, name: str, error: VhtError) -> None:
        """Note that ``name`` takes no further part; the first reason stays."""
        node = self.nodes[name]
        if node.lost is None:
            node.lost, node.code = error.message, error.code

    def too_few(self, minimum: int) -> CohortError:
        """The error of a run of which fewer than ``minimum`` nodes are left, with each lost one's own reason."""
        lost = "; ".join(f"{name} ({node.code}): {node.lost}" for name, node in self.nodes.items() if node.lost)
        return CohortError(
            f"{len(self.taking_part())} of {counted(len(self.nodes), 'node')} are left, at least {minimum} must be; "
            f"lost: {lost}",
            code="VHT-COHORT-NODES",
            hint="what was released stays released and spent; start a new study when the nodes are back",
        )

    def end(self, state: State, error: VhtError | None = None, reason: str = "") -> None:
        self.state, self.reason = state, reason or (error.message if error else "")
        self.error = error.envelope() if error else None

    def raise_if_unsuccessful(self) -> None:
        """The run's own typed error where it ended otherwise than completed."""
        if self.state == "completed":
            return
        if self.error:
            raise error_from_envelope(self.error)
        kind = {"revoked": RevokedError, "refused": RefusedError}.get(self.state, VhtError)
        raise kind(self.reason or f"the run ended as {self.state}")


class RunDirectory:
    """Reads and writes one run's files; every write is atomic (a crash leaves the last complete state)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def create(self, dispatch: Dispatch, initial: bytes, state: RunState) -> None:
        self._replace("weights/round-000.safetensors", initial)
        self._replace("dispatch.json", dispatch.model_dump_json(indent=2).encode())
        self.write_state(state)

    def dispatch(self) -> Dispatch:
        """Raises InputError VHT-INPUT-RUN."""
        try:
            return Dispatch.model_validate_json((self.path / "dispatch.json").read_bytes())
        except (OSError, ValidationError) as error:
            raise _no_run(self.path) from error

    def state(self) -> RunState:
        """Raises InputError VHT-INPUT-RUN."""
        try:
            return RunState.model_validate_json((self.path / "run.json").read_bytes())
        except (OSError, ValidationError) as error:
            raise _no_run(self.path) from error

    def interruption(self, state: RunState) -> str:
        """What is left of a run that no process goes on with; nothing for one that ended, goes on or was not begun."""
        if any(PidFile(self.path / name).running() for name in (PID_FILE, STUDY_PID)):
            return ""
        if state.state == "completed" and not (self.path / RESULT).exists():
            return "the rounds are complete, the release is not: vht study resume"
        if state.state == "running" or (state.state == "requested" and (self.path / "dispatch.json").exists()):
            return "no process goes on with it: vht study resume"
        return ""

    def write_state(self, state: RunState) -> None:
        self._replace("run.json", json.dumps(state.model_dump(mode="json"), indent=2).encode())

    def weights(self, round_: int) -> bytes:
        return (self.path / f"weights/round-{round_:03d}.safetensors").read_bytes()

    def write_weights(self, round_: int, weights: bytes) -> None:
        self._replace(f"weights/round-{round_:03d}.safetensors", weights)

    def write_output(self, job: str, round_: int, node: str, reply: Reply) -> None:
        folder = f"outputs/{job}-{round_}"
        self._replace(f"{folder}/{node}.safetensors", reply.tensors)
        self._replace(f"{folder}/{node}.json", json.dumps(reply.result).encode())

    def outputs(self, job: str, round_: int) -> dict[str, Reply]:
        """What each node released in one phase, by its name."""
        folder = self.path / "outputs" / f"{job}-{round_}"
        return {
            path.stem: Reply(read_json(path.read_bytes()), path.with_suffix(".safetensors").read_bytes())
            for path in sorted(folder.glob("*.json"))
        }

    def recorded(self, state: RunState, job: str, round_: int) -> dict[str, Reply]:
        """Of these outputs, those that ``run.json`` holds: a crash may have left others, from before a resume."""
        names = {name for phase in state.rounds if (phase.job, phase.round) == (job, round_) for name in phase.outputs}
        return {name: reply for name, reply in self.outputs(job, round_).items() if name in names}

    def request_stop(self) -> None:
        """Ask the ServerApp to end the run after what is under way."""
        (self.path / "stop-requested").touch()

    def stop_requested(self) -> bool:
        return (self.path / "stop-requested").exists()

    def _replace(self, name: str, data: bytes) -> None:
        path = self.path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_file(path, data, mode=READABLE)


def _no_run(path: Path) -> InputError:
    return InputError(f"{path} holds no run", code="VHT-INPUT-RUN", hint="it is the --out of 'vht study run'")
