"""Poisson sampling that never exceeds a batch size, for steps whose tensors must not change their shape.

Where more patients were drawn than fit, a uniformly random subset of them is kept. The truncated and the plain
mechanism are the same unless a step overflows, so over ``steps`` steps on one dataset they differ with probability at
most ``steps * p``, with p = Pr[Bin(patients, rate) > batch]; p grows with the dataset, so the bound for the largest
allowed holds for every dataset and its neighbours. For all events S and neighbours D, D', by going from the truncated
to the plain mechanism and back,

    Pr[T(D) in S] <= e^epsilon Pr[T(D') in S] + delta + (1 + e^epsilon) * steps * p

(Chua et al. 2024, "Scalable DP-SGD: shuffling vs. Poisson subsampling", truncated Poisson batches).
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from vht_federate.domain.budget import PrivacyEvent
from vht_federate.errors import BudgetError, InputError, RefusedError
from vht_federate.privacy.accounting import epsilon
from vht_federate.privacy.noise import NoiseSource

__all__ = ["TruncatedPoisson"]

_SET_ASIDE = 0.01  # of delta, for overflows
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
            raise RefusedError("more patients than this sampler is accounted for", code="VHT-REFUSED-SIZE")
        drawn = noise.poisson_sample(population, self.rate)
        if len(drawn) <= self.batch:
            return drawn
        return np.sort(drawn[np.argsort(noise.uniform(len(drawn)), kind="stable")[: self.batch]])

    def epsilon(self, noise_multiplier: float, steps: int, delta: float) -> float:
        """Of ``steps`` Gaussian releases on such samples, at ``delta``, a hundredth of which covers overflows.

        Raises BudgetError VHT-BUDGET-INFEASIBLE where overflows are too likely for that.
        """
        event = PrivacyEvent(
            label="train", population="train", noise_multiplier=noise_multiplier, sampling_rate=self.rate, steps=steps
        )
        spent = epsilon([event], (1.0 - _SET_ASIDE) * delta)
        if (1.0 + math.exp(spent)) * steps * self.overflow > _SET_ASIDE * delta:
            raise BudgetError(
                "batches overflow too often for this delta",
                code="VHT-BUDGET-INFEASIBLE",
                hint="a larger batch costs time and no privacy",
            )
        return spent

    @classmethod
    def fitting(
        cls, rate: float, patients: int, noise_multiplier: float, steps: int, delta: float
    ) -> "TruncatedPoisson":
        """The sampler with the smallest batch whose overflows fit into the hundredth of ``delta``."""
        low, high = 0, patients
        while high - low > 1:
            middle = (low + high) // 2
            try:
                cls(rate, middle, patients).epsilon(noise_multiplier, steps, delta)
                high = middle
            except BudgetError:
                low = middle
        return cls(rate, high, patients)
