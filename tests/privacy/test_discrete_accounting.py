import math

import numpy as np
import pytest
from scipy import stats

from vht_federate.domain.budget import PrivacyEvent
from vht_federate.errors import InputError
from vht_federate.privacy.accounting import epsilon_rdp
from vht_federate.privacy.discrete_accounting import discrete_gaussian_renyi, epsilon_of, skellam_renyi


def divergence(p: np.ndarray, q: np.ndarray, order: int) -> float:
    return math.log(np.sum(np.exp(order * np.log(p) + (1 - order) * np.log(q)))) / (order - 1)


@pytest.mark.parametrize("order", [2, 5, 12])
@pytest.mark.parametrize("variance", [2.0, 9.0, 100.0])
@pytest.mark.parametrize("moved", [1, 2])
def test_bounds_hold_for_the_exact_laws_shifted_by_the_sensitivity(order: int, variance: float, moved: int) -> None:
    x = np.arange(-150, 151)
    weights = np.exp(-np.square(x) / (2 * variance))
    shifted = np.exp(-np.square(x - moved) / (2 * variance))
    mask = weights > 1e-280
    exact = divergence((shifted / shifted.sum())[mask & (shifted > 1e-280)], (weights / weights.sum())[
        mask & (shifted > 1e-280)], order)  # fmt: skip
    assert exact <= discrete_gaussian_renyi(moved, variance)(order) * (1 + 1e-9)

    p, q = (stats.skellam.pmf(x - shift, variance / 2, variance / 2) for shift in (moved, 0))
    good = (p > 1e-250) & (q > 1e-250)
    exact_skellam = divergence(p[good], q[good], order)
    assert exact_skellam <= skellam_renyi(moved, moved, variance)(order) * (1 + 1e-9)


def test_discrete_gaussian_costs_what_the_gaussian_costs_and_skellam_a_little_more() -> None:
    event = PrivacyEvent(label="sum", population="train", noise_multiplier=4.0, steps=3)
    gaussian = epsilon_rdp([event], 1e-5)
    discrete = epsilon_of([discrete_gaussian_renyi(250.0, 1_000_000)] * 3, 1e-5)
    assert discrete == pytest.approx(gaussian, rel=0.02)
    skellam = epsilon_of([skellam_renyi(250.0 * 10, 250.0, 1_000_000)] * 3, 1e-5)
    assert discrete < skellam < 1.1 * discrete


def test_less_noise_and_more_releases_cost_more() -> None:
    at_400, at_100 = ([skellam_renyi(3.0, 2.0, variance)] for variance in (400, 100))
    assert epsilon_of(at_400, 1e-5) < epsilon_of(at_100, 1e-5)
    assert epsilon_of(at_400, 1e-5) < epsilon_of(at_400 * 2, 1e-5)
    assert epsilon_of([], 1e-5) == 0.0


def test_what_is_no_sensitivity_variance_or_delta_is_refused() -> None:
    for bad in ((0.0, 1.0), (1.0, 0.0), (1.0, math.inf), (math.nan, 1.0)):
        with pytest.raises(InputError):
            discrete_gaussian_renyi(*bad)
        with pytest.raises(InputError):
            skellam_renyi(1.0, *bad)
    with pytest.raises(InputError):
        epsilon_of([discrete_gaussian_renyi(1.0, 1.0)], 0.0)
