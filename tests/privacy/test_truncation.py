"""Batches of bounded size: what is drawn, and what the rare cut costs."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vht_federate.domain.budget import PrivacyEvent
from vht_federate.errors import BudgetError, InputError, RefusedError
from vht_federate.privacy.accounting import epsilon
from vht_federate.privacy.noise import SecureNoise
from vht_federate.privacy.truncation import TruncatedPoisson
from vht_federate.testing import SeededNoise

GRID = np.linspace(-12, 16, 20_001)


def density(patients: int, rate: float, batch: int, sigma: float) -> np.ndarray:
    """Of a sum to which each sampled patient adds one, at most ``batch`` of them, plus noise."""
    drawn = np.arange(patients + 1)
    weights = stats.binom.pmf(drawn, patients, rate)
    return stats.norm.pdf(GRID[:, None], np.minimum(drawn, batch), sigma) @ weights


def delta_between(one: np.ndarray, other: np.ndarray, eps: float) -> float:
    return float(np.trapezoid(np.maximum(one - math.exp(eps) * other, 0.0), GRID))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    patients=st.integers(1, 8),
    rate=st.sampled_from([0.05, 0.3, 0.8]),
    batch=st.integers(1, 4),
    sigma=st.sampled_from([0.7, 1.0, 3.0]),
    eps=st.sampled_from([0.0, 0.1, 0.5, 1.0, 2.0]),
)
def test_the_exact_loss_of_a_truncated_step_is_within_the_proven_bound(
    patients: int, rate: float, batch: int, sigma: float, eps: float
) -> None:
    overflow = TruncatedPoisson(rate, batch, patients).overflow
    with_one, without = (density(n, rate, batch, sigma) for n in (patients, patients - 1))
    plain = [density(n, rate, patients, sigma) for n in (patients, patients - 1)]
    for now, then, first, second in ((with_one, without, *plain), (without, with_one, *reversed(plain))):
        bound = delta_between(first, second, eps) + (1 + math.exp(eps)) * overflow
        assert delta_between(now, then, eps) <= bound + 1e-9


def test_the_chance_of_an_overflow_is_the_binomial_tail_and_grows_with_the_dataset() -> None:
    exact = sum(math.comb(10, k) * 0.3**k * 0.7 ** (10 - k) for k in range(6, 11))
    assert exact <= TruncatedPoisson(0.3, 5, 10).overflow <= exact * (1 + 1e-5)
    chances = [TruncatedPoisson(0.3, 5, n).overflow for n in range(1, 40)]
    assert chances == sorted(chances)
    assert chances[:5] == [0.0] * 5


def test_overflows_are_added_and_too_many_are_refused() -> None:
    event = PrivacyEvent(label="t", population="train", noise_multiplier=1.0, sampling_rate=0.01, steps=200)
    plain = epsilon([event], 1e-5)
    roomy = TruncatedPoisson(0.01, 260, 10_000)
    spent = roomy.epsilon(1.0, 200, 1e-5)
    assert plain < spent < 1.01 * plain
    assert (1 + math.exp(spent)) * 200 * roomy.overflow <= 1e-7
    with pytest.raises(BudgetError) as caught:
        TruncatedPoisson(0.01, 120, 10_000).epsilon(1.0, 200, 1e-5)
    assert caught.value.code == "VHT-BUDGET-INFEASIBLE"


def test_the_fitting_batch_is_the_smallest_that_is_not_refused() -> None:
    fitting = TruncatedPoisson.fitting(0.01, 10_000, 1.0, 200, 1e-5)
    assert 150 < fitting.batch < 200
    fitting.epsilon(1.0, 200, 1e-5)
    with pytest.raises(BudgetError):
        TruncatedPoisson(0.01, fitting.batch - 1, 10_000).epsilon(1.0, 200, 1e-5)


def test_what_fits_is_the_plain_sample_and_what_does_not_is_cut_to_a_random_part_of_it() -> None:
    wide = TruncatedPoisson(0.3, 50, 100)
    assert np.array_equal(wide.sample(100, SeededNoise(1)), SeededNoise(1).poisson_sample(100, 0.3))
    narrow, kept = TruncatedPoisson(1.0, 3, 12), np.zeros(12)
    for _ in range(3000):
        drawn = narrow.sample(12, SecureNoise())
        assert len(drawn) == 3
        assert (np.diff(drawn) > 0).all()
        kept[drawn] += 1
    assert stats.chisquare(kept).pvalue > 1e-5  # each patient as often as any other
    assert len(narrow.sample(0, SecureNoise())) == 0


def test_more_patients_than_accounted_for_are_refused() -> None:
    with pytest.raises(RefusedError):
        TruncatedPoisson(0.1, 5, 10).sample(11, SecureNoise())


@pytest.mark.parametrize("parts", [(0.0, 1, 1), (1.1, 1, 1), (0.5, 0, 1), (0.5, 1, 0), (math.nan, 1, 1)])
def test_what_is_no_sampler_is_refused(parts: tuple[float, int, int]) -> None:
    with pytest.raises(InputError):
        TruncatedPoisson(*parts)
