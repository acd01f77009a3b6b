"""What an enclave is told at its start, and the gate that governs every round."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from vht_federate.domain.isolation import IsolationLevel
from vht_federate.domain.job_origin import JobOrigin
from vht_federate.domain.permit import Identifier
from vht_federate.domain.plan import StudyPlan
from vht_federate.domain.study import ComponentRef

__all__ = ["EnclaveInfo", "EnclosedReport", "Gate", "VisitSpec"]


class VisitSpec(BaseModel):
    """One approved visit. All fields are public; the cohort's folder holds what is not.

    ``cohort``: folder with ``cohort.safetensors``. ``folder``: the visit's own folder, the only place where its
    enclave writes. ``closed``: a folder (the node's state directory) of which it may read nothing but its own; None:
    the folder of all visits. ``isolation``: no enclave runs below it.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    visit: Identifier
    study_id: Identifier
    component: ComponentRef
    plan: StudyPlan
    codebook: dict[str, Any] | None = None
    cohort: Path
    folder: Path
    closed: Path | None = None
    isolation: IsolationLevel = IsolationLevel.SANDBOX


@dataclass(frozen=True)
class EnclaveInfo:
    """A running enclave: its process, the digest that it recomputed, what closes it off, whose jobs it runs.

    ``walls``: by name, as ``connector.enclave.isolation`` raises them; their level is ``isolation``. Both, and the
    ``jobs``, were said before a component's code was loaded.
    """

    visit: str
    pid: int
    component_digest: str
    isolation: IsolationLevel
    walls: tuple[str, ...]
    jobs: dict[str, JobOrigin]
    device: str  # "cpu" or "cuda"


class EnclosedReport(BaseModel):
    """What an enclave says of itself before it loads a component's code."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    isolation: IsolationLevel
    walls: tuple[str, ...]
    jobs: dict[str, JobOrigin]


class Gate(Protocol):
    """Asked by the control channel for each round of a visit; may be called from any thread.

    ``begin`` comes before any noise is drawn: it judges the visit's state, the permit and its status, draws the
    round's planned events from the reservation and logs; it raises the typed error that refuses (and has logged it).
    ``release`` comes before the answer of ``output_bytes`` leaves; raising keeps it inside. ``refused`` tells of a call
    that the enclave itself refused, for the log.
    """

    def begin(self, visit: str, job: str, round: int, request_sha256: str) -> None: ...

    def release(self, visit: str, job: str, round: int, output_sha256: str, output_bytes: int) -> None: ...

    def refused(self, visit: str, job: str, round: int, code: str) -> None: ...
