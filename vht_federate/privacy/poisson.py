"""Poisson numbers by inversion of a table that is as precise as a draw needs.

Cumulative probabilities are kept as integers over 2^bits between which the true ones lie. A uniform real is compared
by its first 62 bits; where these cannot tell, more bits are drawn and a longer table is made. So every draw has
exactly the Poisson distribution.
"""

from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from math import floor

import numpy as np
from numpy.typing import NDArray

from vht_federate.privacy.noise import RandomWords

__all__ = ["poisson"]

_FIRST_BITS = 62
_GUARD_BITS = 96


@dataclass(frozen=True)
class _Table:
    """Pr[X <= first + i] * 2^bits lies in [cumulative[i] - 1, cumulative[i] + 2)."""

    first: int
    bits: int
    cumulative: tuple[int, ...]

    def find(self, uniform: int) -> int | None:
        """The X for a real in [uniform, uniform + 1) / 2^bits; None where that interval does not tell."""
        low = bisect_right(self.cumulative, uniform - 2)
        high = bisect_right(self.cumulative, uniform + 1)
        outside = low >= len(self.cumulative) or (low == 0 and self.first > 0)
        return None if low != high or outside else self.first + low


def poisson(mean: Fraction, count: int, source: RandomWords) -> NDArray[np.int64]:
    """``count`` independent Poisson numbers of rational ``mean``, 0 < mean <= 2^31."""
    table = _table(mean, _FIRST_BITS)
    cumulative = np.array(table.cumulative, dtype=np.int64)
    drawn = (source.words(count) >> np.uint64(64 - _FIRST_BITS)).astype(np.int64)
    low = np.searchsorted(cumulative, drawn - 2, side="right")
    high = np.searchsorted(cumulative, drawn + 1, side="right")
    numbers = low + table.first
    doubtful = (low != high) | (low >= len(cumulative)) | ((low == 0) & (table.first > 0))
    for place in np.flatnonzero(doubtful):
        numbers[place] = _settle(int(drawn[place]), mean, source)
    return numbers.astype(np.int64)


def _settle(uniform: int, mean: Fraction, source: RandomWords) -> int:
    """The same by more bits."""
    bits, number = _FIRST_BITS, None
    while number is None:
        uniform, bits = (uniform << 64) | int(source.words(1)[0]), bits + 64
        number = _table(mean, bits).find(uniform)
    return number


@lru_cache(maxsize=64)
def _table(mean: Fraction, bits: int) -> _Table:
    """Weights outwards from the mode, rounded down to 2^-(bits + guard) of it; what is left out is below one unit.

    Each rounding is carried outwards by factors below one, so a weight is off by at most its distance from the mode,
    and all sums by less than 2^64 of the guarded units: far below 2^-bits.
    """
    mode_weight, mode = 1 << (bits + _GUARD_BITS), floor(mean)
    below: list[int] = []
    weight, k = mode_weight, mode
    while k > 0 and (weight := weight * k * mean.denominator // mean.numerator) > 0:
        below.append(weight)
        k -= 1
    above: list[int] = []
    weight, k = mode_weight, mode + 1
    while (weight := weight * mean.numerator // (mean.denominator * k)) > 0:
        above.append(weight)
        k += 1
    weights = [*reversed(below), mode_weight, *above]
    total, running, cumulative = sum(weights), 0, []
    for weight in weights:
        running += weight
        cumulative.append((running << bits) // total)
    return _Table(mode - len(below), bits, tuple(cumulative))
