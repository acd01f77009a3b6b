"""Exact samplers against exact probabilities. A true sampler fails a comparison as seldom as ``false_alarms`` says."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.false_alarms import RARE, SIGMAS
from scipy import stats

from vht_federate.errors import InputError
from vht_federate.privacy import exact_bernoulli as bernoulli_module
from vht_federate.privacy import poisson as poisson_module
from vht_federate.privacy.discrete import discrete_gaussian, discrete_laplace, skellam
from vht_federate.privacy.exact_bernoulli import Rationals, bernoulli, bernoulli_exp, integers_below
from vht_federate.privacy.noise import RandomWords, SecureNoise
from vht_federate.privacy.poisson import poisson
from vht_federate.testing import SeededNoise

ENOUGH = 100  # expected in each cell: with fewer, chi-square has no such tails
VARIANCES = [Fraction(1, 5), Fraction(1), Fraction(7, 3), Fraction(40), Fraction(90_000)]


def gaussian_pmf(x: np.ndarray, variance: float) -> np.ndarray:
    weights = np.exp(-np.square(x, dtype=float) / (2 * variance))
    return weights / weights.sum()


def chi_square(sample: np.ndarray, support: np.ndarray, chance: np.ndarray) -> float:
    """p-value; neighbouring values are pooled until each cell expects ENOUGH."""
    order, cells, expected, room = np.argsort(support), [], [], 0.0
    edges = []
    for value, expected_count in zip(support[order], chance[order] * len(sample), strict=True):
        room += expected_count
        if room >= ENOUGH:
            edges.append(value)
            expected.append(room)
            room = 0.0
    expected[-1] += room
    cells = np.bincount(np.searchsorted(edges[:-1], sample, side="left"), minlength=len(edges))
    expected = np.array(expected)
    return float(stats.chisquare(cells, expected * cells.sum() / expected.sum()).pvalue)


def support(variance: Fraction) -> np.ndarray:
    reach = int(12 * math.sqrt(variance)) + 8
    return np.arange(-reach, reach + 1)


@pytest.mark.parametrize("variance", VARIANCES)
def test_discrete_gaussian_has_its_exact_probabilities(variance: Fraction) -> None:
    sample = discrete_gaussian(variance, (30_000,), SecureNoise())
    x = support(variance)
    assert chi_square(sample, x, gaussian_pmf(x, float(variance))) > RARE


@pytest.mark.parametrize("variance", VARIANCES)
def test_skellam_has_its_exact_probabilities(variance: Fraction) -> None:
    sample = skellam(variance, (60_000,), SecureNoise())
    x = support(variance)
    exact = stats.skellam.pmf(x, float(variance) / 2, float(variance) / 2)
    assert chi_square(sample, x, exact) > RARE


@pytest.mark.parametrize("scale", [1, 2, 13])
def test_discrete_laplace_has_its_exact_probabilities(scale: int) -> None:
    sample = discrete_laplace(scale, (30_000,), SecureNoise())
    x = np.arange(-40 * scale, 40 * scale + 1)
    weights = np.exp(-np.abs(x) / scale)
    assert chi_square(sample, x, weights / weights.sum()) > RARE


@pytest.mark.parametrize("mean", [Fraction(1, 10), Fraction(3, 2), Fraction(50), Fraction(100_001, 10)])
def test_poisson_has_its_exact_probabilities(mean: Fraction) -> None:
    sample = poisson(mean, 60_000, SecureNoise())
    x = np.arange(0, int(mean + 12 * math.sqrt(mean)) + 20)
    assert chi_square(sample, x, stats.poisson.pmf(x, float(mean))) > RARE


@pytest.mark.parametrize("draw", [discrete_gaussian, skellam])
def test_variance_and_tails_are_those_of_the_law(draw) -> None:
    variance, count = Fraction(10_000), 60_000
    sample = draw(variance, (count,), SecureNoise())
    spread = math.sqrt(2 / count)
    assert abs(sample.mean()) < SIGMAS * 100 / math.sqrt(count)
    assert abs(sample.var() / 10_000 - 1) < SIGMAS * spread
    for sigmas in (1, 2, 3):
        tail = 2 * stats.norm.sf((100 * sigmas + 0.5) / 100)
        share = np.mean(np.abs(sample) > 100 * sigmas)
        assert abs(share - tail) < SIGMAS * math.sqrt(tail / count) + 1e-4
    assert np.abs(sample).max() < 800


def test_the_sum_of_nodes_skellam_noise_is_skellam_noise_of_the_sum() -> None:
    source = SecureNoise()
    summed = sum(skellam(Fraction(9, 4), (40_000,), source) for _ in range(4))
    x = support(Fraction(9))
    assert chi_square(summed, x, stats.skellam.pmf(x, 4.5, 4.5)) > RARE


def test_where_floats_never_decide_draws_are_as_fair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bernoulli_module, "MARGIN", 2.0)
    x = support(Fraction(7, 3))
    sample = discrete_gaussian(Fraction(7, 3), (3_000,), SeededNoise(2))
    assert chi_square(sample, x, gaussian_pmf(x, 7 / 3)) > RARE


def test_where_the_first_bits_never_decide_poisson_is_as_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    source = SecureNoise()
    draws = [poisson_module._settle(int(word >> 2), Fraction(3), source) for word in source.words(4_000)]
    x = np.arange(40)
    assert chi_square(np.array(draws), x, stats.poisson.pmf(x, 3)) > RARE
    monkeypatch.setattr(poisson_module, "_FIRST_BITS", 4)  # sixteen cells: nearly every draw needs more bits
    assert chi_square(poisson(Fraction(3), 4_000, source), x, stats.poisson.pmf(x, 3)) > RARE


class Words:
    """Words as given, then zeros."""

    def __init__(self, *given: int) -> None:
        self.given = list(given)

    def words(self, count: int) -> np.ndarray:
        words = [self.given.pop(0) if self.given else 0 for _ in range(count)]
        return np.array(words, dtype=np.uint64)


def test_a_draw_takes_more_bits_exactly_where_its_chance_is_near() -> None:
    third = Rationals(np.array([1 / 3]), lambda _: Fraction(1, 3))
    prefix = int(Fraction(1, 3) * 2**53) << 11  # the first 53 bits of 1/3
    rest = int(Fraction(1, 3) * 2**117) & (2**64 - 1)  # the 64 bits that follow
    assert bernoulli(third, Words(prefix, rest - 1)).tolist() == [True]
    assert bernoulli(third, Words(prefix, rest + 1)).tolist() == [False]
    deeper = Words(prefix, rest, 0)
    assert bernoulli(third, deeper).tolist() == [True]
    assert deeper.given == []
    assert bernoulli(third, Words(0)).tolist() == [True]
    assert bernoulli(third, Words(2**64 - 1)).tolist() == [False]


@settings(max_examples=25, deadline=None)
@given(st.fractions(0, 6, max_denominator=50), st.integers(0, 10_000))
def test_exponential_draws_succeed_with_chance_e_to_the_minus_x(x: Fraction, seed: int) -> None:
    exponents = Rationals(np.full(4_000, float(x)), lambda _: x)
    fell = int(bernoulli_exp(exponents, SeededNoise(seed)).sum())
    assert stats.binomtest(fell, 4_000, math.exp(-x)).pvalue > RARE


def test_certain_and_impossible_draws() -> None:
    sure = Rationals(np.array([0.0, 1.0] * 50), lambda place: Fraction(place % 2))
    assert bernoulli(sure, SecureNoise()).tolist() == [False, True] * 50
    assert bernoulli_exp(Rationals(np.zeros(50), lambda _: Fraction(0)), SecureNoise()).all()


@pytest.mark.parametrize("limit", [2, 3, 1000, (1 << 61) + 1])
def test_integers_below_a_limit_are_uniform(limit: int) -> None:
    draws = integers_below(limit, 20_000, SecureNoise())
    assert draws.min() >= 0
    assert draws.max() < limit
    cells = min(limit, 10)
    counts = np.bincount((draws / limit * cells).astype(int).clip(0, cells - 1), minlength=cells)
    assert stats.chisquare(counts).pvalue > RARE
    assert integers_below(1, 50, SecureNoise()).tolist() == [0] * 50


def test_two_runs_never_share_noise_and_shapes_are_kept() -> None:
    first, second = (discrete_gaussian(10**6, (20, 30), SecureNoise()) for _ in range(2))
    assert first.shape == (20, 30)
    assert first.dtype == np.int64
    assert np.mean(first == second) < 0.05
    assert skellam(4, (), SecureNoise()).shape == ()
    assert discrete_gaussian(4, (0, 3), SecureNoise()).shape == (0, 3)
    assert isinstance(SecureNoise(), RandomWords)


@pytest.mark.parametrize("variance", [0, -1, 2**33, Fraction(1, 2**21)])
@pytest.mark.parametrize("draw", [discrete_gaussian, skellam])
def test_a_variance_off_the_grid_is_refused(draw, variance) -> None:
    with pytest.raises(InputError, match="variance"):
        draw(variance, (1,), SecureNoise())


def test_a_scale_off_the_grid_is_refused() -> None:
    with pytest.raises(InputError, match="scale"):
        discrete_laplace(0, (1,), SecureNoise())
