import math

import numpy as np
import pytest
from scipy.stats import binom

from vht_federate.domain.budget import PrivacyEvent
from vht_federate.privacy.accounting import epsilon
from vht_federate.privacy.audit.guessing import Guesses, least_refuting, lower_bound, refutes
from vht_federate.privacy.audit.tradeoff import Tradeoff, tradeoff


def pure(eps: float) -> Tradeoff:
    """Exactly (eps, 0)-DP."""
    return Tradeoff(np.array([eps]), np.array([0.0]))


@pytest.mark.parametrize("eps", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("right", [55, 70, 85, 95])
def test_for_pure_privacy_the_bound_is_never_below_randomised_response(eps: float, right: int) -> None:
    """Randomised response is (eps, 0)-DP and gets Binomial(m, e^eps / (1 + e^eps)) right: it must not be refuted."""
    chance = binom.sf(right - 1, 100, 1 / (1 + math.exp(-eps)))
    assert not refutes(pure(eps), Guesses(100, 100, right), min(1.0, chance * (1 - 1e-9)))


@pytest.mark.parametrize("guesses", [40, 100])
def test_for_pure_privacy_the_bound_is_that_of_randomised_response(guesses: int) -> None:
    needed = least_refuting(pure(1.0), 100, guesses, 1e-3)
    exact = int(binom.isf(1e-3, guesses, 1 / (1 + math.exp(-1)))) + 1
    assert needed is not None
    assert exact <= needed <= exact + 2


def test_more_right_guesses_refute_more_and_a_weaker_claim_is_refuted_less() -> None:
    counts = range(60, 101, 5)
    by_eps = [[refutes(pure(eps), Guesses(100, 100, right), 1e-3) for right in counts] for eps in (0.5, 1.0, 2.0)]
    assert all(row == sorted(row) for row in by_eps)
    assert all(column == sorted(column, reverse=True) for column in map(list, zip(*by_eps, strict=True)))
    assert by_eps[0] != by_eps[2]


def test_a_few_guesses_cannot_refute_at_this_confidence() -> None:
    assert least_refuting(pure(1.0), 100, 5, 1e-4) is None


def test_the_curve_agrees_with_the_ledgers_accountant() -> None:
    curve = tradeoff(0.86, 0.01, 50)
    event = PrivacyEvent(label="t", population="train", noise_multiplier=0.86, sampling_rate=0.01, steps=50)
    assert curve.above(1e-5) == pytest.approx(epsilon([event], 1e-5), abs=0.011)


def test_the_curve_never_passes_that_of_the_gaussian() -> None:
    """Gaussian of multiplier s: an event of probability y keeps at least Phi(Phi^-1(y) - 1/s)."""
    from scipy.stats import norm

    curve = tradeoff(2.0, 1.0, 1)
    for y in (1e-6, 1e-3, 0.1, 0.5):
        exact = norm.cdf(norm.ppf(y) - 0.5)
        assert 0.97 * exact - 1e-12 <= curve.least(y) <= exact


def test_the_lower_bound_passes_the_claim_exactly_where_the_claim_is_refuted() -> None:
    def curve_at(factor: float) -> Tradeoff:
        return tradeoff(round(2.0 * factor, 6), 0.5, 1)

    needed = least_refuting(curve_at(1.0), 5000, 200, 1e-3)
    assert needed is not None
    claimed = curve_at(1.0).above(1e-5)
    above = lower_bound(curve_at, Guesses(5000, 200, needed + 2), 1e-3, 1e-5)
    below = lower_bound(curve_at, Guesses(5000, 200, needed - 2), 1e-3, 1e-5)
    assert below <= claimed <= above
    assert lower_bound(curve_at, Guesses(5000, 200, 100), 1e-3, 1e-5) == 0.0
