"""What an account by privacy loss distributions takes to compute, known before any of it is computed.

Work is counted in points: the points of the grid on which the loss of one step is laid out, which are walked one by
one, and an eighth of the points of the composition, which are transformed together. The grid of a step spans the losses
that its mechanism can reach. Composed ``steps`` times it spans what is left between two Chernoff bounds, of which
``dp_accounting`` 0.6 tries twenty orders up to 20 over the span; the variance of a step is at most its Renyi divergence
of order two. A million points are two seconds of one core, up to fifteen of a slow one.

Steps are bounded beside the points: the library raises the size of a sparse grid to the power of their number, one
multiplication that no other thread of the process can interrupt.
"""

import math
from collections.abc import Sequence
from functools import lru_cache

from vht_federate.privacy.renyi import Mechanism, step_curve

__all__ = ["MOST_POINTS", "MOST_STEPS", "loss_deviation", "points"]

MOST_STEPS = 100_000  # of one mechanism
MOST_POINTS = 400_000  # of one plan
_COMPOSED = 1 / 8  # what a point of the composition weighs
_CHERNOFF_ORDERS = 20
_TAIL = 2 * math.log(2 / 1e-15)  # both ends of a composition that the library cuts off


def points(mechanisms: Sequence[tuple[Mechanism, int]], interval: float) -> float:
    """The work of composing ``mechanisms``, each with its number of steps, on a grid of width ``interval``."""
    return sum(_points(mechanism, steps, interval) for mechanism, steps in mechanisms)


def _points(mechanism: Mechanism, steps: int, interval: float) -> float:
    spans = _spans(mechanism)
    if steps == 1:
        return sum(spans) / interval
    variance = float(step_curve(mechanism, (2,))[0])
    composed = sum(
        min(steps * variance * order / span + _TAIL * span / order for order in range(1, _CHERNOFF_ORDERS + 1))
        for span in spans
    )
    return (sum(spans) + _COMPOSED * composed) / interval


def loss_deviation(mechanism: Mechanism) -> float:
    """Standard deviation of the loss of one step, at most: the square root of its Renyi divergence of order two."""
    return math.sqrt(float(step_curve(mechanism, (2,))[0]))


@lru_cache(maxsize=4096)
def _spans(mechanism: Mechanism) -> tuple[float, ...]:
    """How far the losses of one step reach, where a patient is removed and where one is added (once, if the same)."""
    from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType, GaussianPrivacyLoss

    name, rate, noise, *_ = mechanism
    if name == "laplace":
        return (2.0 / noise,)
    directions = (AdjacencyType.REMOVE,) if rate == 1.0 else (AdjacencyType.REMOVE, AdjacencyType.ADD)
    bounds = [
        GaussianPrivacyLoss(noise, sampling_prob=rate, adjacency_type=direction).connect_dots_bounds()
        for direction in directions
    ]
    return tuple(float(bound.epsilon_upper - bound.epsilon_lower) for bound in bounds)
