"""What costs privacy: frozen events that hold exactly what accounting needs, and nothing else.

An event names the population it touches. ``train`` and ``test`` are disjoint sets of patients (a fixed public
split, see ``domain/split.py``), so a patient pays for the events of its own set and for those on ``all``.
"""

from collections.abc import Iterable
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["POPULATIONS", "Noise", "Population", "PrivacyEvent", "PrivacySpend", "touching"]

Noise = Annotated[float, Field(ge=1e-2, le=1e6)]  # a standard deviation over an L2 sensitivity
Population = Literal["train", "test", "all"]
POPULATIONS: tuple[Literal["train", "test"], ...] = ("train", "test")


class PrivacyEvent(BaseModel):
    """``steps`` releases of a Gaussian mechanism, each on a fresh Poisson sample of patients at ``sampling_rate``.

    ``noise_multiplier`` is the standard deviation over the L2 sensitivity of one patient (add or remove one).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str  # what was released: "train", "count", "evaluate", "marginals-1", …
    population: Population
    noise_multiplier: Noise
    sampling_rate: float = Field(default=1.0, gt=0, le=1)
    steps: int = Field(default=1, ge=1)


class PrivacySpend(BaseModel):
    """A guarantee: (epsilon, delta) per patient, add or remove one patient, at one node."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    epsilon: float
    delta: float
    accountant: str = "pld"
    unit: str = "patient"
    neighbouring: str = "add-or-remove-one-patient"


def touching(events: Iterable[PrivacyEvent], population: str) -> list[PrivacyEvent]:
    """Events that a patient of ``population`` ("train" or "test") pays for."""
    return [event for event in events if event.population in (population, "all")]
