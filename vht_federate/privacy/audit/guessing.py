"""How many right guesses a claim allows (Mahloujifar, Melis, Chaudhuri: Auditing f-differential privacy in one run).

Each of ``canaries`` was in or out by a fair coin of its own. An attacker guesses ``guesses`` of them and gets
``correct`` right. Let p_i be the probability of i right guesses. Turning the coin of one canary turns one right guess
into a wrong one, so f-DP binds sum over i >= c of (i / m) p_i to sum over i >= c - 1 of ((guesses - i) / m) p_i.
Starting from Pr[at least ``correct``] = significance, the recursion adds up the least probability that all smaller
counts must then have; where that passes one, the claim does not allow so many right guesses. No independence between
canaries is assumed, and one run is enough.
"""

from collections.abc import Callable
from dataclasses import dataclass

from vht_federate.privacy.audit.tradeoff import Tradeoff

__all__ = ["Guesses", "least_refuting", "lower_bound", "refutes"]

_LEAST_NOISE, _MOST_NOISE = 1 / 4, 16.0  # relative to the claimed noise multiplier
_HALVINGS = 8


@dataclass(frozen=True)
class Guesses:
    """``correct`` of ``guesses`` about ``canaries`` coins were right."""

    canaries: int
    guesses: int
    correct: int


def refutes(curve: Tradeoff, seen: Guesses, significance: float) -> bool:
    """Whether a mechanism that keeps to ``curve`` gets so many right with probability below ``significance``."""
    at_stake = seen.guesses / seen.canaries
    right = significance * seen.correct / seen.canaries
    wrong = significance * (seen.guesses - seen.correct) / seen.canaries
    for count in range(seen.correct - 1, -1, -1):
        least = max(wrong, curve.least(right))
        right += count / (seen.guesses - count) * (least - wrong)
        wrong = least
        if right + wrong > at_stake:
            return True
    return False


def least_refuting(curve: Tradeoff, canaries: int, guesses: int, significance: float) -> int | None:
    """The fewest right guesses that refute ``curve``; None where even all of them do not."""
    if not refutes(curve, Guesses(canaries, guesses, guesses), significance):
        return None
    low, high = 0, guesses
    while high - low > 1:
        middle = (low + high) // 2
        if refutes(curve, Guesses(canaries, guesses, middle), significance):
            high = middle
        else:
            low = middle
    return high


def lower_bound(curve_at: Callable[[float], Tradeoff], seen: Guesses, significance: float, delta: float) -> float:
    """The largest epsilon at ``delta``, among curves of the claim's family, that ``seen`` refutes; 0.0 for none.

    ``curve_at(factor)``: the claim's curve with its noise multiplied by ``factor``. Refutation is monotone in it.
    """
    if not refutes(curve_at(_MOST_NOISE), seen, significance):
        return 0.0
    refuted, stands = _MOST_NOISE, _MOST_NOISE
    while refuted == stands and stands > _LEAST_NOISE:
        stands = stands / 2
        if refutes(curve_at(stands), seen, significance):
            refuted = stands
    for _ in range(_HALVINGS):
        middle = (refuted * stands) ** 0.5
        if refutes(curve_at(middle), seen, significance):
            refuted = middle
        else:
            stands = middle
    return curve_at(refuted).above(delta)
