"""Whether batches were drawn as claimed: each patient on its own, in each step, with the claimed rate.

Three numbers, each compared with its own distribution under the claim, drawn many times (a Monte Carlo test, valid at
any number of draws): how many patients were read in total (a wrong rate), how much batch sizes vary (not at all, where
they are fixed), and how many pairs of batches share a patient (none within an epoch, where patients are shuffled).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["SamplingTest", "sampling_test"]

_DRAWS = 40_000
_SEED = 20_240_511  # of the reference distributions only: independent of what is tested


@dataclass(frozen=True)
class SamplingTest:
    """Two-sided p-values, each already multiplied by the number of tests. ``p`` is the smallest."""

    rate: float
    sizes: float
    repeats: float

    @property
    def p(self) -> float:
        return min(self.rate, self.sizes, self.repeats)


def sampling_test(batches: Sequence[NDArray[np.int64]], population: int, rate: float) -> SamplingTest:
    """How likely batches so odd are, if each of ``population`` patients was in each batch with ``rate`` on its own."""
    rng = np.random.default_rng(_SEED)
    steps = len(batches)
    sizes = np.array([len(np.unique(batch)) for batch in batches])
    read = np.bincount(np.concatenate([np.unique(batch) for batch in batches]), minlength=population)
    expected_sizes = rng.binomial(population, rate, size=(_DRAWS, steps))
    expected_reads = _reads(rng, population, rate, steps)
    pairs = np.arange(steps + 1) * (np.arange(steps + 1) - 1) / 2
    spread = np.square(sizes - population * rate).sum()
    return SamplingTest(
        rate=_two_sided(float(sizes.sum()), expected_sizes.sum(axis=1)),
        sizes=_two_sided(float(spread), np.square(expected_sizes - population * rate).sum(axis=1)),
        repeats=_two_sided(float(pairs[read].sum()), expected_reads @ pairs),
    )


def _reads(rng: np.random.Generator, population: int, rate: float, steps: int) -> NDArray[np.int64]:
    """How many patients are read 0..steps times, [draws, steps + 1]."""
    from scipy.stats import binom

    chance = binom.pmf(np.arange(steps + 1), steps, rate)
    return rng.multinomial(population, chance / chance.sum(), size=_DRAWS)


def _two_sided(seen: float, expected: NDArray[np.float64]) -> float:
    above = (1 + int((expected >= seen).sum())) / (1 + len(expected))
    below = (1 + int((expected <= seen).sum())) / (1 + len(expected))
    return min(1.0, 3 * 2 * min(above, below))
