"""What an account costs is known before it is paid; a plan that costs too much is refused unpriced."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.hostile_table import Answered
from scipy.stats import norm

from vht_federate.domain.budget import PrivacyEvent
from vht_federate.domain.plan import StudyPlan, TrainingPlan
from vht_federate.errors import BudgetError
from vht_federate.privacy import accounting
from vht_federate.privacy.accounting import epsilon, epsilon_rdp, require_priceable
from vht_federate.privacy.accounting_cost import MOST_POINTS, MOST_STEPS, points
from vht_federate.privacy.renyi import mechanism_of

DELTA = 1e-5


def sampled(noise: float, rate: float, steps: int) -> PrivacyEvent:
    return PrivacyEvent(label="t", population="train", noise_multiplier=noise, sampling_rate=rate, steps=steps)


def plan(noise: float, rate: float, rounds: int, local_steps: int) -> StudyPlan:
    return StudyPlan(
        delta=DELTA,
        training=TrainingPlan(
            rounds=rounds,
            local_steps=local_steps,
            sampling_rate=rate,
            clipping_norm=1.0,
            noise_multiplier=noise,
            learning_rate=0.1,
        ),
    )


@pytest.mark.parametrize(("noise", "rate", "steps"), [(3.0, 0.2, 2000), (1.2, 0.05, 400), (10.0, 0.01, 100_000)])
def test_the_foreseen_points_are_those_that_the_library_walks(noise: float, rate: float, steps: int) -> None:
    from dp_accounting.pld import common
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    interval = 1e-4
    distribution = from_gaussian_mechanism(noise, sampling_prob=rate, value_discretization_interval=interval)
    walked = 0.0
    for pmf in (distribution._pmf_remove, distribution._pmf_add):
        losses = pmf.to_dense_pmf()._probs if hasattr(pmf, "to_dense_pmf") else pmf._probs
        low, high = common.compute_self_convolve_bounds(losses, steps, 1e-15)
        walked += len(losses) + (high - low) / 8
    mechanism = ("gaussian", rate, noise, 0.0, 0.0)
    assert points([(mechanism, steps)], interval) == pytest.approx(walked, rel=0.4)


@pytest.mark.hostile("costly-plan", control=True)
@pytest.mark.hostile("costly-plan")
@pytest.mark.parametrize(
    ("noise", "rate", "rounds", "local_steps"),
    [(1000.0, 0.5, 1000, 10_000), (0.3, 1e-4, 10, 100), (1500.0, 0.999, 1000, 10_000), (0.4, 1e-4, 100, 1000)],
)
def test_a_plan_that_takes_minutes_is_refused_and_nothing_of_it_is_laid_out(
    noise: float, rate: float, rounds: int, local_steps: int, monkeypatch: pytest.MonkeyPatch, answered: Answered
) -> None:
    costly = plan(noise, rate, rounds, local_steps)
    monkeypatch.setattr(accounting, "_distribution", lambda *_: pytest.fail("an account was computed"))
    with pytest.raises(BudgetError) as caught:
        require_priceable(costly.events(), DELTA)
    assert caught.value.code == "VHT-BUDGET-COSTLY"
    answered(caught.value.code)
    mechanism = ("gaussian", rate, noise, 0.0, 0.0)  # the control: it would have been much
    assert rounds * local_steps > MOST_STEPS or points([(mechanism, rounds * local_steps)], 1e-4) > MOST_POINTS


def test_usual_plans_are_priced() -> None:
    for usual in (plan(3.0, 0.2, 5, 12), plan(1.2, 0.05, 20, 20), plan(0.8, 0.01, 100, 100), plan(4.0, 0.01, 100, 100)):
        require_priceable(usual.events(), DELTA)


def test_many_costly_plans_together_are_priced_on_a_coarser_grid(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [sampled(0.9 + 0.001 * number, 0.001, 10) for number in range(12)]
    fine = epsilon(many, DELTA)
    together = points([(mechanism_of(event), event.steps) for event in many], 1e-4)
    monkeypatch.setattr(accounting, "MOST_POINTS_TOGETHER", together - 1)
    accounting._pld.cache_clear()
    coarse = epsilon(many, DELTA)
    accounting._pld.cache_clear()
    assert fine <= coarse < 1.05 * fine < epsilon_rdp(many, DELTA)


def test_where_no_grid_is_coarse_enough_a_cheap_and_larger_bound_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    many = [sampled(0.9 + 0.001 * number, 0.001, 10) for number in range(30)]
    monkeypatch.setattr(accounting, "MOST_POINTS_TOGETHER", 100)
    monkeypatch.setattr(accounting, "_distribution", lambda *_: pytest.fail("an account was computed"))
    assert epsilon(many, DELTA) == epsilon_rdp(many, DELTA)
    accounting._pld.cache_clear()


def test_remembered_steps_cost_what_the_library_composes() -> None:
    from dp_accounting import GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
    from dp_accounting.pld import PLDAccountant

    accountant = PLDAccountant(value_discretization_interval=1e-4)
    for rate, noise, steps in ((0.2, 3.0, 60), (0.1, 2.0, 7)):
        accountant.compose(SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(noise)), steps))
    composed = epsilon([sampled(3.0, 0.2, 60), sampled(2.0, 0.1, 7)], DELTA)
    assert np.isclose(composed, accountant.get_epsilon(DELTA), rtol=1e-12)


# --- small rates: what one step costs, and how good the answer is ---------------------------------------------------


@contextmanager
def laid_out() -> Iterator[list[tuple[float, float]]]:
    """(width, points) of each account that is composed; composing itself is left out."""
    asked: list[tuple[float, float]] = []

    def note(mechanisms: tuple, interval: float, _: float) -> float:
        asked.append((interval, points(mechanisms, interval)))
        return 0.0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(accounting, "_composed", note)
        accounting._pld.cache_clear()
        yield asked
    accounting._pld.cache_clear()


@settings(max_examples=100, deadline=None)
@given(
    rate=st.floats(-6, -1).map(lambda power: 10**power),
    noise=st.floats(math.log(0.3), math.log(20)).map(math.exp),
    steps=st.sampled_from([1, 2, 10, 1000, 100_000]),
    delta=st.sampled_from([1e-3, 1e-6, 1e-12]),
)
def test_no_rate_noise_or_number_of_steps_costs_more_points_than_an_account_may(
    rate: float, noise: float, steps: int, delta: float
) -> None:
    with laid_out() as asked:
        epsilon([sampled(noise, rate, steps)], delta)
    for interval, cost in asked:
        assert cost <= accounting.MOST_POINTS_TOGETHER
        assert interval >= 1e-4 or cost <= 2 * MOST_POINTS, "a fine grid is for where it costs little"


@pytest.mark.parametrize(("noise", "rate"), [(0.3, 1e-4), (0.5, 1e-4), (0.7, 1e-6), (1.0, 1e-2)])
def test_the_points_of_one_step_are_those_that_the_library_walks(noise: float, rate: float) -> None:
    from dp_accounting.pld.privacy_loss_distribution import from_gaussian_mechanism

    interval = 1e-3
    distribution = from_gaussian_mechanism(noise, sampling_prob=rate, value_discretization_interval=interval)
    walked = 0
    for pmf in (distribution._pmf_remove, distribution._pmf_add):
        losses = pmf._loss_probs if hasattr(pmf, "_loss_probs") else pmf._probs
        walked += len(losses)
    mechanism = ("gaussian", rate, noise, 0.0, 0.0)
    assert walked <= 1.05 * points([(mechanism, 1)], interval) + 10


def exact_delta(rate: float, noise: float, eps: float) -> float:
    """Of one step, with a patient removed: (1 - q) N(0, s^2) + q N(1, s^2) against N(0, s^2), exactly."""
    threshold = 0.5 + noise**2 * math.log((math.expm1(eps) + rate) / rate)
    beyond, shifted = norm.sf(threshold / noise), norm.sf((threshold - 1) / noise)
    return float((1 - rate) * beyond + rate * shifted - math.exp(eps) * beyond)


@pytest.mark.parametrize("noise", [0.3, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("rate", [1e-2, 1e-3, 1e-4])
@pytest.mark.parametrize("delta", [1e-5, 1e-8])
def test_one_sampled_step_is_never_priced_below_the_exact_cost_and_hardly_above(
    rate: float, noise: float, delta: float
) -> None:
    cost = epsilon([sampled(noise, rate, 1)], delta)
    assert exact_delta(rate, noise, cost) <= delta * (1 + 1e-6)
    below = cost * 0.95 - 1e-6
    assert below <= 0 or exact_delta(rate, noise, below) > delta


@pytest.mark.parametrize(
    ("rate", "noise", "steps"), [(1e-3, 20, 1000), (1e-4, 5, 100_000), (1e-4, 2, 100_000), (1e-3, 5, 1000)]
)
def test_many_steps_of_small_losses_are_priced_as_the_gaussian_that_they_add_up_to(
    rate: float, noise: float, steps: int
) -> None:
    """Central limit theorem for the Gaussian mechanism (Dong, Roth and Su 2019)."""
    together = rate * math.sqrt(steps * math.expm1(1 / noise**2))
    limit = accounting._gaussian(1 / together, DELTA)
    assert 0.995 * limit <= epsilon([sampled(noise, rate, steps)], DELTA) <= 1.03 * limit
