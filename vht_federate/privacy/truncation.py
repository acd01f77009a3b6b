"""Poisson sampling that never exceeds a batch size, for steps whose tensors must not change their shape.

Where more patients were drawn than fit, a uniformly random subset of them is kept. The truncated and the plain
mechanism are the same unless a step overflows, so over ``steps`` steps on one dataset they differ with probability at
most ``steps * p``, with p = Pr[Bin(patients, rate) > batch]; p grows with the dataset, so the bound for the largest
allowed holds for every dataset and its neighbours. For all events S and neighbours D, D', by going from the truncated
to the plain mechanism and back,

    Pr[T(D) in S] <= e^epsilon Pr[T(D') in S] + delta + (1 + e^epsilon) * steps * p

(Chua et al. 2024, "Scalable DP-SGD: shuffling vs. Poisson subsampling", truncated Poisson batches). Chances add up over
events, whatever was released in between, so that accounts and filters carry them as one more number.

A dataset that is larger than accounted for must not be trained on, and whether it is must not show. So the check is
made on the noised count of patients, with ``MARGIN`` standard deviations to spare; that it fails to see a larger
dataset has its own chance, which every event carries too.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vht_federate.domain.budget import PrivacyEvent
from vht_federate.domain.plan import BatchLimit, TrainingPlan
from vht_federate.errors import InputError, RefusedError
from vht_federate.privacy.noise import NoiseSource

__all__ = ["RARE", "SET_ASIDE", "TruncatedPoisson", "check_population", "covers", "overflow_chance"]

SET_ASIDE = 0.01  # of delta, for overflows
RARE = 1e-18  # what one plan may ask of that: thousands of plans fit under a cap of epsilon 10
MARGIN = 12.0  # standard deviations of the noise on the count
_UNSEEN = 2e-33  # never below the chance of a standard normal below -MARGIN
_ROUNDING = 1.0 + 1e-6  # scipy's tail is good to far more digits


@dataclass(frozen=True)
class TruncatedPoisson:
    """Each of at most ``patients`` patients with probability ``rate``, on its own; at most ``batch`` of them."""

    rate: float
    batch: int
    patients: int

    def __post_init__(self) -> None:
        if not (0.0 < self.rate <= 1.0 and self.batch >= 1 and self.patients >= 1):
            raise InputError("0 < rate <= 1, batch >= 1 and patients >= 1 do not hold", code="VHT-INPUT-RATE")

    @property
    def overflow(self) -> float:
        """Pr[Bin(patients, rate) > batch], never below the truth."""
        from scipy.stats import binom

        if self.batch >= self.patients:
            return 0.0
        return min(1.0, float(binom.sf(self.batch, self.patients, self.rate)) * _ROUNDING)

    def sample(self, population: int, noise: NoiseSource) -> NDArray[np.int64]:
        """Indices in 0..population-1, ascending. Raises RefusedError VHT-REFUSED-SIZE for more than ``patients``."""
        if population > self.patients:
            raise _too_large()
        drawn = noise.poisson_sample(population, self.rate)
        if len(drawn) <= self.batch:
            return drawn
        return np.sort(drawn[np.argsort(noise.uniform(len(drawn)), kind="stable")[: self.batch]])

    @classmethod
    def fitting(cls, rate: float, patients: int, steps: int) -> "TruncatedPoisson":
        """The sampler with the smallest batch that overflows in any of ``steps`` with a chance of at most ``RARE``."""
        low, high = 0, patients
        while high - low > 1:
            middle = (low + high) // 2
            if steps * cls(rate, middle, patients).overflow <= RARE:
                high = middle
            else:
                low = middle
        return cls(rate, high, patients)


def check_population(plan: TrainingPlan, patients_noised: float) -> None:
    """Raise RefusedError VHT-REFUSED-SIZE where more patients than accounted for may hide behind the noised count."""
    limit = plan.batch_limit
    if limit and patients_noised + MARGIN * plan.count_noise_multiplier > limit.population:
        raise _too_large(limit)


def overflow_chance(events: Iterable[PrivacyEvent]) -> float:
    """The chance that any step of ``events`` drew more than fits, or from more patients than accounted for."""
    return sum(
        _chance(event.sampling_rate, event.largest_batch, event.largest_population, event.steps) for event in events
    )


@lru_cache(maxsize=4096)
def _chance(rate: float, batch: int | None, population: int | None, steps: int) -> float:
    if batch is None or population is None:
        return 0.0
    return steps * TruncatedPoisson(rate, batch, population).overflow + _UNSEEN


def covers(delta: float, epsilon: float, chance: float) -> bool:
    """Whether the part of ``delta`` that is set aside is enough for overflows of a total ``chance`` at ``epsilon``."""
    return chance == 0.0 or math.log(chance) + float(np.logaddexp(0.0, epsilon)) <= math.log(SET_ASIDE * delta)


def _too_large(limit: BatchLimit | None = None) -> RefusedError:
    bound = f" ({limit.population} in this plan)" if limit else ""
    return RefusedError(
        f"this node may hold more training patients than the plan's batches are accounted for{bound}",
        code="VHT-REFUSED-SIZE",
        hint="raise largest_population in the study file's [training]",
    )
