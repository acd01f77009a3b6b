"""Bernoulli variables of exactly a rational chance, or of chance e^-x for a rational x, many at a time.

A draw compares a uniform real with its chance. The first 53 bits of the real, against the chance in float64, decide
nearly always; where they lie closer than float64 can tell, further bits are compared with the exact rational. So the
result has exactly the stated distribution, at the speed of floats. Algorithm 1 of Canonne, Kamath and Steinke (2020).
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from vht_federate.privacy.noise import RandomWords

__all__ = ["MARGIN", "Rationals", "bernoulli", "bernoulli_exp", "integers_below", "successes_of_exp_one"]

MARGIN = 2.0**-36  # what float64 values below may be off by, at most, with room to spare
_BITS = 53
_LARGE = 64.0

Booleans = NDArray[np.bool_]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Rationals:
    """Numbers known nearly (float64, off by less than ``MARGIN``) and, one by one on demand, exactly."""

    near: NDArray[np.float64]
    exactly: Callable[[int], Fraction]

    def take(self, places: Integers) -> "Rationals":
        return Rationals(self.near[places], lambda index: self.exactly(int(places[index])))


def bernoulli(chance: Rationals, source: RandomWords) -> Booleans:
    """One success or failure for each ``chance`` in [0, 1]."""
    drawn = source.words(len(chance.near)) >> np.uint64(64 - _BITS)
    uniform = drawn.astype(np.float64) * 2.0**-_BITS
    success = uniform < chance.near
    for place in np.flatnonzero(np.abs(uniform - chance.near) <= MARGIN):
        success[place] = _below(int(drawn[place]), chance.exactly(int(place)), source)
    return success


def _below(first_bits: int, chance: Fraction, source: RandomWords) -> bool:
    """Whether a uniform real that starts with these bits lies below ``chance``: more bits are drawn until it shows."""
    uniform, bits = first_bits, _BITS
    while True:
        aim = chance.numerator << bits
        if (uniform + 1) * chance.denominator <= aim:
            return True
        if uniform * chance.denominator >= aim:
            return False
        uniform, bits = (uniform << 64) | int(source.words(1)[0]), bits + 64


def bernoulli_exp(exponent: Rationals, source: RandomWords) -> Booleans:
    """One coin of chance e^-x for each x >= 0 in ``exponent``; above 64, ``near`` may be off by more."""
    whole = np.floor(exponent.near).astype(np.int64)
    part = exponent.near - whole
    doubtful = (np.minimum(part, 1.0 - part) <= MARGIN) | (exponent.near > _LARGE)
    for place in np.flatnonzero(doubtful):
        exact = exponent.exactly(int(place))
        whole[place] = int(exact)
        part[place] = float(exact - int(exact))
    rest = Rationals(part, lambda place: exponent.exactly(place) - int(whole[place]))
    success = successes_of_exp_one(len(whole), source) >= whole
    left = np.flatnonzero(success)
    success[left] = _bernoulli_exp_up_to_one(rest.take(left), source)
    return success


def _bernoulli_exp_up_to_one(exponent: Rationals, source: RandomWords) -> Booleans:
    """Chance e^-x for x in [0, 1]: the first k at which a draw of chance x / k fails is odd (von Neumann)."""
    first_failure = np.zeros(len(exponent.near), dtype=np.int64)
    running, k = np.arange(len(exponent.near)), 1
    while len(running):
        success = bernoulli(exponent.take(running), source) & _bernoulli_of(Fraction(1, k), len(running), source)
        first_failure[running[~success]] = k
        running, k = running[success], k + 1
    odd: Booleans = first_failure % 2 == 1
    return odd


def successes_of_exp_one(count: int, source: RandomWords) -> Integers:
    """``count`` times: how many draws of chance 1/e succeed before one fails."""
    successes = np.zeros(count, dtype=np.int64)
    running = np.arange(count)
    while len(running):
        ones = Rationals(np.ones(len(running)), lambda _: Fraction(1))
        running = running[_bernoulli_exp_up_to_one(ones, source)]
        successes[running] += 1
    return successes


def _bernoulli_of(chance: Fraction, count: int, source: RandomWords) -> Booleans:
    return bernoulli(Rationals(np.full(count, float(chance)), lambda _: chance), source)


def integers_below(limit: int, count: int, source: RandomWords) -> Integers:
    """``count`` integers, uniform in 0..limit-1, for 1 <= limit < 2^62."""
    spare = np.uint64((1 << 63) % limit)
    drawn = source.words(count) >> np.uint64(1)
    while len(over := np.flatnonzero(drawn >= np.uint64(1 << 63) - spare)):
        drawn[over] = source.words(len(over)) >> np.uint64(1)
    return (drawn % np.uint64(limit)).astype(np.int64)
