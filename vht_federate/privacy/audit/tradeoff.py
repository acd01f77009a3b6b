"""How well a claim lets anybody tell a patient's presence: the f-DP curve of composed, Poisson-sampled Gaussian steps.

``dp_accounting`` gives delta for every epsilon (adding and removing, whichever is larger, rounded up). For each pair
Pr[E | present] <= e^epsilon Pr[E | absent] + delta, both ways round: that family of lines is the curve.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["Tradeoff", "tradeoff"]

_INTERVAL = 1e-3  # of the privacy loss; coarser than the ledger's and still pessimistic
_EPSILONS = np.arange(0.0, 16.0, 0.01)


@dataclass(frozen=True)
class Tradeoff:
    """Lines Pr[E | S] <= e^epsilons[i] Pr[E | S'] + deltas[i], for every event E and neighbours S, S'."""

    epsilons: NDArray[np.float64]
    deltas: NDArray[np.float64]

    def least(self, probability: float) -> float:
        """The least probability that an event of ``probability`` can have once one patient joins or leaves.

        Never above the truth: any finite set of lines gives a valid bound.
        """
        return float(max(0.0, np.max((probability - self.deltas) * np.exp(-self.epsilons))))

    def above(self, delta: float) -> float:
        """The largest epsilon of the lines whose delta is larger than ``delta``: a mechanism off this curve pays more.

        0.0 for none; the last line of all where every line is.
        """
        over = np.flatnonzero(self.deltas > delta)
        return float(self.epsilons[over[-1]]) if len(over) else 0.0


@lru_cache(maxsize=256)
def tradeoff(noise_multiplier: float, sampling_rate: float, steps: int) -> Tradeoff:
    """The curve of ``steps`` Gaussian releases, each on its own Poisson sample at ``sampling_rate``."""
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    step_pld = from_gaussian_mechanism(
        noise_multiplier, value_discretization_interval=_INTERVAL, sampling_prob=sampling_rate
    )
    composed = step_pld.self_compose(steps) if steps > 1 else step_pld
    return Tradeoff(_EPSILONS, np.asarray(composed.get_delta_for_epsilon(_EPSILONS), dtype=np.float64))
