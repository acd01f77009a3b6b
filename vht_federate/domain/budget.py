"""What costs privacy: frozen events that hold exactly what accounting needs, and nothing else.

An event names the population it touches. ``train`` and ``test`` are disjoint sets of patients (a fixed public
split, see ``domain/split.py``), so a patient pays for the events of its own set and for those on ``all``.
"""

from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

__all__ = [
    "MOST_PATIENTS",
    "POPULATIONS",
    "Mechanism",
    "Noise",
    "Population",
    "PrivacyEvent",
    "PrivacySpend",
    "touching",
]

Noise = Annotated[float, Field(ge=1e-2, le=1e6)]  # a standard deviation over an L2 sensitivity
Population = Literal["train", "test", "all"]
Mechanism = Literal["gaussian", "discrete-gaussian", "skellam", "laplace", "exponential"]
MOST_PATIENTS = 100_000_000  # of one node
POPULATIONS: tuple[Literal["train", "test"], ...] = ("train", "test")
_PLAIN = {"mechanism": "gaussian"} | dict.fromkeys(
    ("l2_sensitivity", "l1_sensitivity", "largest_batch", "largest_population")
)


class PrivacyEvent(BaseModel):
    """``steps`` releases of a mechanism, each on a fresh Poisson sample of patients at ``sampling_rate``.

    ``noise_multiplier``, of one patient (add or remove one): the standard deviation over the L2 sensitivity (gaussian,
    discrete-gaussian, skellam), the scale over the L1 sensitivity (laplace), or one over the epsilon of a choice
    (exponential). Skellam noise also needs both sensitivities in units of its grid. All but Gaussian noise is on
    everybody: ``sampling_rate`` 1. A sample of bounded size (truncated Poisson) names its bound, ``largest_batch``, and
    ``largest_population``, the most patients it may be drawn from. The set of mechanisms is closed; what is not in it
    cannot be planned or held.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: str  # what was released: "train", "count", "evaluate", "marginals-1", …
    population: Population
    noise_multiplier: Noise
    sampling_rate: float = Field(default=1.0, gt=0, le=1)
    steps: int = Field(default=1, ge=1)
    mechanism: Mechanism = "gaussian"
    l2_sensitivity: float | None = Field(default=None, gt=0, lt=1e9)  # of skellam noise, in units of the grid
    l1_sensitivity: float | None = Field(default=None, gt=0, lt=1e12)
    largest_batch: int | None = Field(default=None, ge=1, le=MOST_PATIENTS)  # patients; of a truncated sample
    largest_population: int | None = Field(default=None, ge=1, le=MOST_PATIENTS)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        present = [sensitivity is not None for sensitivity in (self.l1_sensitivity, self.l2_sensitivity)]
        if present != [self.mechanism == "skellam"] * 2:
            raise ValueError("skellam noise has both sensitivities, no other has any")
        if self.mechanism != "gaussian" and self.sampling_rate != 1.0:
            raise ValueError("sampling is accounted for Gaussian noise alone")
        if (self.largest_batch is None) != (self.largest_population is None):
            raise ValueError("a truncated sample has a largest batch and a largest population")
        if self.largest_batch is not None and self.mechanism != "gaussian":
            raise ValueError("truncated samples are accounted for Gaussian noise alone")
        return self

    @model_serializer(mode="wrap")
    def _short(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without the fields that Gaussian noise does not need."""
        fields: dict[str, Any] = dump(self)
        return {name: value for name, value in fields.items() if name not in _PLAIN or value != _PLAIN[name]}


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
