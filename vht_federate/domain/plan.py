"""The plan: sampling, clipping, noise, rounds and accountant in one frozen value.

What is accounted is what runs: an enclave takes its steps from this value, and ``events_of`` derives the ledger's
events from the same fields. Nothing here changes speed only. Scales are bounded so that noise and clipped sums stay
far from the subnormal range of floats, where rounding would undo the guarantee.
"""

import math
from collections.abc import Mapping
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from vht_federate.domain.budget import MOST_PATIENTS, Noise, Population, PrivacyEvent

__all__ = [
    "RELEASE_TYPES",
    "AdaptiveClipping",
    "BatchLimit",
    "CohortPlan",
    "EvaluationPlan",
    "Precision",
    "StudyPlan",
    "TrainingPlan",
]

Precision = Literal["float64", "float32"]  # of noise and of the sums that it is added to
RELEASE_TYPES: Mapping[str, str] = {"train": "component", "evaluate": "metrics", "marginals": "cohort"}
"""What a job's outputs are made into: the release type that a permit must list for the job to run."""


class AdaptiveClipping(BaseModel):
    """A clipping norm that follows a quantile of the norms of patients' contributions (Andrew et al. 2021).

    Each step also releases, with noise, how many of its patients stayed within the norm, and multiplies the norm with
    e^(-learning_rate * (share within - quantile)). ``share`` of the precision 1/noise_multiplier^2 of a step goes to
    that count, the rest to the sum, so that both together cost what one step costs (their theorem 1).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    quantile: float = Field(default=0.5, gt=0, lt=1)
    learning_rate: float = Field(default=0.2, gt=0, le=1)
    share: float = Field(default=0.05, gt=0, le=0.5)


class BatchLimit(BaseModel):
    """Steps of one shape: no step uses more than ``patients``, whatever was drawn (truncated Poisson sampling).

    Where more were drawn, a uniformly random part of them is kept. What that costs in delta is accounted for nodes of
    at most ``population`` training patients; one whose noised count may hide more refuses.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    patients: int = Field(ge=1, le=MOST_PATIENTS)
    population: int = Field(ge=1, le=MOST_PATIENTS)


class TrainingPlan(BaseModel):
    """Patient-level DP-SGD: ``rounds`` visits of ``local_steps`` private steps each.

    Each step draws patients independently with ``sampling_rate``, averages each patient's per-record gradients,
    clips that average once to ``clipping_norm`` (L2), sums, adds N(0, (noise_multiplier * clipping_norm)^2) per
    coordinate, and divides by the expected batch (sampling_rate * noised count of patients). With adaptive clipping
    ``noise_multiplier`` is that of the sum and the count together.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    rounds: int = Field(ge=1, le=1000)
    local_steps: int = Field(ge=1, le=10_000)
    sampling_rate: float = Field(gt=0, le=1)
    clipping_norm: float = Field(ge=1e-6, le=1e6)
    noise_multiplier: Noise  # calibrated from the epsilon that is left for training
    learning_rate: float = Field(gt=0)
    momentum: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    count_noise_multiplier: Noise = 10.0  # noise on the number of training patients
    adaptive_clipping: AdaptiveClipping | None = None  # else the norm moves, from clipping_norm on
    noise_precision: Precision = "float64"  # "float32": faster for large models, and coarser in its low-order bits
    batch_limit: BatchLimit | None = None  # else a step takes whoever was drawn

    @property
    def sum_noise_multiplier(self) -> float:
        """Of a step's sum alone."""
        adaptive = self.adaptive_clipping
        return self.noise_multiplier if adaptive is None else self.noise_multiplier / math.sqrt(1.0 - adaptive.share)

    @property
    def count_noise(self) -> float | None:
        """Standard deviation of the noise on the number of patients within the norm; None where nobody counts them.

        One patient moves that number, less half of all, by 1/2.
        """
        adaptive = self.adaptive_clipping
        return None if adaptive is None else self.noise_multiplier / math.sqrt(4.0 * adaptive.share)


class EvaluationPlan(BaseModel):
    """One confusion table and one histogram of scores by label on the test patients, two Gaussian releases."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    noise_multiplier: Noise  # of each of the two
    score_bins: int = Field(default=20, ge=2, le=200)  # of the histogram


class CohortPlan(BaseModel):
    """Noisy marginals in two stages: all one-way tables and coarse pairs, then the chosen two-way tables.

    Noise multipliers are relative to the L2 sensitivity of each whole vector of tables.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    one_way_noise_multiplier: Noise
    sketch_noise_multiplier: Noise
    two_way_noise_multiplier: Noise
    population: Population = "train"
    rows: int | None = Field(default=None, ge=1)  # None: as many as the noised counts say


class StudyPlan(BaseModel):
    """Everything a study will spend at one node."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    delta: float = Field(gt=0, lt=0.01)
    neighbouring: Literal["add-or-remove-one-patient"] = "add-or-remove-one-patient"
    accountant: Literal["pld"] = "pld"  # privacy loss distributions
    trust_model: Literal["full-noise-at-each-node"] = "full-noise-at-each-node"  # nobody else needs to be honest
    training: TrainingPlan
    evaluation: EvaluationPlan | None = None  # None: no evaluation
    cohort: CohortPlan | None = None  # None: no synthetic cohort

    def events_of(self, job: str, round_: int) -> tuple[PrivacyEvent, ...]:
        """What one call of ``job`` at ``round_`` spends. An unplanned call raises KeyError: fail closed.

        Jobs: ``train`` (rounds 1..rounds), ``evaluate`` (round 1), ``marginals`` (rounds 1 and 2).
        """
        return self._calls()[job, round_]

    def calls(self) -> tuple[tuple[str, int], ...]:
        """Every (job, round) that this plan allows, each once."""
        return tuple(self._calls())

    def release_types(self) -> frozenset[str]:
        """What the permit must allow to be released, or no call of this plan may run as planned."""
        return frozenset(RELEASE_TYPES[job] for job, _ in self._calls())

    def events(self) -> tuple[PrivacyEvent, ...]:
        """All that the plan will spend at one node."""
        return tuple(event for events in self._calls().values() for event in events)

    def _calls(self) -> dict[tuple[str, int], tuple[PrivacyEvent, ...]]:
        training = self.training
        calls: dict[tuple[str, int], tuple[PrivacyEvent, ...]] = {}
        count = PrivacyEvent(label="count", population="train", noise_multiplier=training.count_noise_multiplier)
        step = PrivacyEvent(
            label="train",
            population="train",
            noise_multiplier=training.noise_multiplier,
            sampling_rate=training.sampling_rate,
            steps=training.local_steps,
            largest_batch=training.batch_limit and training.batch_limit.patients,
            largest_population=training.batch_limit and training.batch_limit.population,
        )
        for number in range(1, training.rounds + 1):
            calls["train", number] = (count, step) if number == 1 else (step,)
        if self.evaluation:
            calls["evaluate", 1] = (
                PrivacyEvent(
                    label="evaluate", population="test", noise_multiplier=self.evaluation.noise_multiplier, steps=2
                ),
            )
        if self.cohort:
            cohort = self.cohort
            calls["marginals", 1] = (
                _gaussian("marginals-one-way", cohort.population, cohort.one_way_noise_multiplier),
                _gaussian("marginals-sketch", cohort.population, cohort.sketch_noise_multiplier),
            )
            calls["marginals", 2] = (
                _gaussian("marginals-two-way", cohort.population, cohort.two_way_noise_multiplier),
            )
        return calls


def _gaussian(label: str, population: Population, noise_multiplier: float) -> PrivacyEvent:
    return PrivacyEvent(label=label, population=population, noise_multiplier=noise_multiplier)
