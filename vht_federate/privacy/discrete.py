"""Noise on the integers, drawn exactly: for sums that secure aggregation adds up, where rounded floats have no place.

Discrete Gaussian and discrete Laplace after Canonne, Kamath and Steinke (2020, "The discrete Gaussian for differential
privacy", algorithms 1 to 3); Skellam as the difference of two exact Poisson numbers (Agarwal, Kairouz and Liu 2021).
The Skellam noise of several nodes adds up to Skellam noise of the summed variance; discrete Gaussian noise does so only
nearly. What each costs is in ``discrete_accounting.py``.
"""

from collections.abc import Callable
from fractions import Fraction
from math import isqrt, prod

import numpy as np
from numpy.typing import NDArray

from vht_federate.errors import InputError
from vht_federate.privacy.exact_bernoulli import (
    Rationals,
    bernoulli,
    bernoulli_exp,
    integers_below,
    successes_of_exp_one,
)
from vht_federate.privacy.noise import RandomWords
from vht_federate.privacy.poisson import poisson

__all__ = ["discrete_gaussian", "discrete_laplace", "skellam"]

_MOST = Fraction(1 << 32)  # of a variance: integers and floats below stay exact or within their margins
_FINEST = 1 << 20  # denominator of a variance
_SPARE = 1.6  # candidates drawn at once for each number that is still missing


def discrete_laplace(scale: int, shape: tuple[int, ...], source: RandomWords) -> NDArray[np.int64]:
    """Integers x with probability proportional to e^(-|x| / scale), for an integer scale from 1 to 2^16."""
    if not 1 <= scale <= 1 << 16:
        raise InputError("a scale on the integer grid lies in 1..65536", code="VHT-INPUT-NOISE")
    samples = _gather(prod(shape), lambda count: _laplace_candidates(scale, count, source))
    return samples.reshape(shape)


def discrete_gaussian(variance: Fraction | int, shape: tuple[int, ...], source: RandomWords) -> NDArray[np.int64]:
    """Integers x with probability proportional to e^(-x^2 / (2 variance))."""
    exact = _checked(variance)
    scale = isqrt(int(exact)) + 1

    def candidates(count: int) -> NDArray[np.int64]:
        drawn = _gather(count, lambda wanted: _laplace_candidates(scale, wanted, source))
        centre = exact / scale
        near = np.square(np.abs(drawn) - float(centre)) / (2.0 * float(exact))
        exponent = Rationals(near, lambda place: (abs(int(drawn[place])) - centre) ** 2 / (2 * exact))
        return drawn[bernoulli_exp(exponent, source)]

    return _gather(prod(shape), candidates).reshape(shape)


def skellam(variance: Fraction | int, shape: tuple[int, ...], source: RandomWords) -> NDArray[np.int64]:
    """Differences of two Poisson numbers of mean variance / 2 each."""
    mean, count = _checked(variance) / 2, prod(shape)
    both = poisson(mean, 2 * count, source)
    return (both[:count] - both[count:]).reshape(shape)


def _checked(variance: Fraction | int) -> Fraction:
    exact = Fraction(variance)
    if not (0 < exact <= _MOST and exact.denominator <= _FINEST):
        raise InputError(
            "a variance on the integer grid is a fraction in (0, 2^32] with a denominator up to 2^20",
            code="VHT-INPUT-NOISE",
        )
    return exact


def _laplace_candidates(scale: int, count: int, source: RandomWords) -> NDArray[np.int64]:
    """About half as many discrete Laplace numbers as ``count``, or fewer."""
    low = integers_below(scale, count, source)
    parts = Rationals(low / float(scale), lambda place: Fraction(int(low[place]), scale))
    low = low[bernoulli_exp(parts, source)]
    size = low + scale * successes_of_exp_one(len(low), source)
    half = Rationals(np.full(len(size), 0.5), lambda _: Fraction(1, 2))
    negative = bernoulli(half, source)
    kept = ~(negative & (size == 0))
    candidates: NDArray[np.int64] = np.where(negative, -size, size)[kept]
    return candidates


def _gather(count: int, candidates: Callable[[int], NDArray[np.int64]]) -> NDArray[np.int64]:
    """The first ``count`` of what ``candidates(how many to try)`` gives, asked again until there are enough."""
    parts: list[NDArray[np.int64]] = []
    missing = count
    while missing > 0:
        samples = candidates(int(_SPARE * missing) + 16)[:missing]
        parts.append(samples)
        missing -= len(samples)
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
