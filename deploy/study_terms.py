"""Who takes part in a local federation, and what its study asks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["Hospital", "StudyTerms"]


@dataclass(frozen=True)
class Hospital:
    """One hospital of the federation: ``folder`` holds its FHIR NDJSON."""

    name: str
    folder: Path

    @property
    def dataset(self) -> str:
        return f"urn:vht:{self.name}:ehr"


@dataclass(frozen=True)
class StudyTerms:
    """What the permit allows and the study asks; ``training`` are fields of ``[training]`` in study.toml."""

    study_id: str
    title: str
    profile: str
    epsilon: float
    delta: float
    cohort_epsilon: float
    evaluation_epsilon: float
    training: dict[str, Any]
    component: str = "cardio-risk"
    minimum_nodes: int = 3
    minimum_cohort: int = 10
    epsilon_cap: float = 10.0
    round_deadline_s: float = 90.0
    permit_days: float = 365.0
