"""What an enclave is told at its start, and the gate that governs every round."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from vht_federate.domain.permit import Identifier
from vht_federate.domain.plan import StudyPlan
from vht_federate.domain.study import ComponentRef

__all__ = ["EnclaveInfo", "Gate", "VisitSpec"]


class VisitSpec(BaseModel):
    """One approved visit. All fields are public; the cohort's folder holds what is not.

    ``cohort``: folder with ``cohort.safetensors``. ``folder``: the visit's own folder, the only place where its
    enclave writes. ``closed``: a folder (the node's state directory) of which it may read nothing but its own; None:
    the folder of all visits.
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


@dataclass(frozen=True)
class EnclaveInfo:
    """A running enclave: its process, the digest that it recomputed, how it is cut off from the network."""

    visit: str
    pid: int
    component_digest: str
    isolation: str  # "network-namespace+audit-hook" or "audit-hook"
    device: str  # "cpu" or "cuda"


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
