"""When to stop, where each plan may be chosen after seeing what the plans before it released.

Composition theorems take their parameters as fixed in advance; studies at a hospital are not. A filter is a rule of
stopping that keeps its guarantee all the same (Rogers, Roth, Ullman and Vadhan 2016). For one Renyi order fixed in
advance, stopping before the divergences add up to more than a bound is enough, also for each patient by itself
(Feldman and Zrnic 2021, theorems 4.3 and 4.5: individual filters).

Which order fits best is known at the end only. So every order of the grid has a share of delta (``SHARES``), and a plan
is admitted while some order still admits it: what was released lies in the part of one order, whose own filter bounds
it by (epsilon, share * delta). The price is a few percent of epsilon. The shares add up to delta less the hundredth
that is set aside for truncated samples (``truncation``): whether any comes is not known in advance, so it always is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vht_federate.domain.budget import PrivacyEvent
from vht_federate.errors import InputError
from vht_federate.privacy.accounting import epsilon
from vht_federate.privacy.renyi import ORDERS, renyi_curve, renyi_epsilon
from vht_federate.privacy.truncation import SET_ASIDE

__all__ = ["RdpFilter"]

SLACK = 1e-9  # rounding, not budget
_HOPELESS = 2.0  # this much above a cap, nobody waits for a finer account
_FALL = 0.6  # of the share of delta from one order of the grid to the next


@dataclass(frozen=True)
class RdpFilter:
    """Admits plans, chosen adaptively, while a patient's whole history stays (``epsilon``, ``delta``)-DP."""

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        if not (0 < self.delta < 1 and 0 < self.epsilon < np.inf):
            raise InputError("a filter has epsilon > 0 and a delta between 0 and 1", code="VHT-INPUT-DELTA")

    def charged(self, curves: NDArray[np.float64]) -> NDArray[np.float64]:
        """Epsilon [...] as this filter counts it for histories of the given ``renyi_curve`` [..., coordinates].

        Infinite where batches of the history may have overflowed too often for the cap and its delta.
        """
        epsilons: NDArray[np.float64] = renyi_epsilon(curves[..., :-1], self._deltas).min(axis=-1)
        return np.where(curves[..., -1] <= self._chance, epsilons, np.inf)

    def admits(self, curves: NDArray[np.float64]) -> NDArray[np.bool_]:
        """May histories [..., coordinates], the plan in question included, come to be? One answer for each."""
        admitted: NDArray[np.bool_] = self.charged(curves) <= self.epsilon + SLACK
        return admitted

    def cost(self, drawn: Sequence[PrivacyEvent], planned: Sequence[PrivacyEvent]) -> float:
        """What decides about ``planned`` after ``drawn``, as an epsilon: the plan fits where it is at most ``epsilon``.

        While nothing was drawn, all that is planned was chosen in advance, and its privacy loss distribution holds.
        Afterwards this filter's count does. A first plan that fits by the former alone, is stopped on the way and
        followed by others leaves (epsilon, 2 delta): what was released lies within that plan, or within the filter.
        """
        events = (*drawn, *planned)
        counted = float(self.charged(renyi_curve(events)))
        if drawn or counted <= self.epsilon or counted > _HOPELESS * self.epsilon + 0.2:
            return counted
        return min(counted, epsilon(events, self.delta))

    def fits(self, drawn: Sequence[PrivacyEvent], planned: Sequence[PrivacyEvent]) -> bool:
        """``cost`` is at most ``epsilon``, up to rounding."""
        return self.cost(drawn, planned) <= self.epsilon + SLACK

    @cached_property
    def _deltas(self) -> NDArray[np.float64]:
        """Each order's part of delta: the largest for the order at which Gaussian noise alone would fill epsilon."""
        orders = np.array(ORDERS, dtype=float)
        empty = np.log1p(-1 / orders) - np.log(self.delta * orders) / (orders - 1)
        best = int(np.argmax((self.epsilon - empty) / orders))
        shares = _FALL ** np.abs(np.arange(len(orders)) - best)
        deltas: NDArray[np.float64] = (1.0 - SET_ASIDE) * self.delta * shares / shares.sum()
        return deltas

    @cached_property
    def _chance(self) -> float:
        """Of an overflow in a whole history: what the part of delta that is set aside covers at the cap."""
        return float(np.exp(np.log(SET_ASIDE * self.delta) - np.logaddexp(0.0, self.epsilon)))
