"""Published values, PRV as a cross-check, the gain of joint accounting, and a mistake that cannot be written down."""

import warnings
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kit.hypothesis_profiles import PROFILE, examples
from pydantic import ValidationError

from vht_federate.domain.budget import PrivacyEvent
from vht_federate.domain.plan import StudyPlan, TrainingPlan
from vht_federate.privacy.accounting import calibrate_training, epsilon, epsilon_rdp
from vht_federate.privacy.filters import RdpFilter
from vht_federate.privacy.renyi import COORDINATES, ORDERS, renyi_curve
from vht_federate.privacy.truncation import SET_ASIDE


def event(noise: float, rate: float = 1.0, steps: int = 1) -> PrivacyEvent:
    return PrivacyEvent(label="e", population="train", noise_multiplier=noise, sampling_rate=rate, steps=steps)


def test_five_trainings_and_three_gaussian_releases_cost_less_than_half_of_the_sum_of_their_epsilons() -> None:
    parts = [[event(1.3, 0.05, 200)]] * 5 + [[event(5.0)]] * 3
    together = epsilon([privacy_event for part in parts for privacy_event in part], 1e-5)
    assert together < 0.5 * sum(epsilon(part, 1e-5) for part in parts)


def test_the_filter_too_admits_them_together_for_less_than_the_sum() -> None:
    parts = [event(1.3, 0.05, 200)] * 5 + [event(5.0)] * 3
    rule = RdpFilter(1.25 * epsilon(parts, 1e-5), 1e-5)
    assert rule.fits(parts[:-1], parts[-1:])
    assert rule.epsilon < 0.7 * sum(epsilon([part], 1e-5) for part in parts)


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "delta", "low", "high"),
    [
        (4.0, 0.01, 10_000, 1e-5, 0.90, 1.26),  # Abadi et al. 2016, section 3: 1.26 by moments
        (1.0, 1.0, 1, 1e-5, 4.37, 4.39),  # Balle and Wang 2018: the exact curve of one Gaussian
    ],
)
def test_published_values_are_reached_and_not_passed(
    noise: float, rate: float, steps: int, delta: float, low: float, high: float
) -> None:
    assert low < epsilon([event(noise, rate, steps)], delta) <= high


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "delta", "published"),
    [(1.3, 150 / 60_000, 15 * 400, 1e-5, 0.7242234026109595), (1.0, 0.001, 30 * 1000, 1e-7, 1.4154988495444845)],
)
def test_renyi_reproduces_the_reference_values_of_compute_dp_sgd_privacy(
    noise: float, rate: float, steps: int, delta: float, published: float
) -> None:
    """Of tensorflow/privacy, whose accountants became dp-accounting."""
    assert epsilon_rdp([event(noise, rate, steps)], delta) == pytest.approx(published, rel=1e-9)
    assert epsilon([event(noise, rate, steps)], delta) < published


@pytest.mark.parametrize(("noise", "rate", "steps"), [(4.0, 0.01, 1000), (1.1, 0.02, 500), (2.0, 0.25, 60)])
def test_prv_of_opacus_agrees(noise: float, rate: float, steps: int) -> None:
    """Gopi et al. 2021, as Opacus ships it: an independent implementation, within its own error of 0.01."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from opacus.accountants import PRVAccountant

        accountant = PRVAccountant()
        accountant.history = [(noise, rate, steps)]
        prv_epsilon = accountant.get_epsilon(delta=1e-5, eps_error=0.01)
    assert epsilon([event(noise, rate, steps)], 1e-5) == pytest.approx(prv_epsilon, abs=0.015)


CORNERS = [
    ([event(0.7, 0.02)], 1e-3),  # hardly anybody, once, with little noise: what orders fit worst
    ([event(0.7, 0.7, 8)], 1e-7),  # a large epsilon, on the coarser grid
    ([event(8.0, 0.3, 60), event(6.0, 1.0, 60), event(1.5, 0.05, 40)], 1e-5),  # unlike parts together
]


@settings(max_examples=examples(5, thorough=100), deadline=None)
@example(*CORNERS[0])
@example(*CORNERS[1])
@example(*CORNERS[2])
@given(
    st.lists(
        st.builds(event, st.floats(0.7, 8), st.sampled_from([0.02, 0.3, 0.7, 1.0]), st.integers(1, 60)),
        min_size=1, max_size=3,
    ),
    st.sampled_from([1e-3, 1e-5, 1e-7]),
)  # fmt: skip
def test_loss_distributions_never_exceed_renyi_never_the_filter(events: list[PrivacyEvent], delta: float) -> None:
    counted = float(RdpFilter(3.0, delta).charged(renyi_curve(events)))
    assert 0 <= epsilon(events, delta) <= epsilon_rdp(events, delta) + 1e-6
    assert epsilon_rdp(events, delta) <= counted + 1e-9


def test_a_release_that_delta_covers_costs_nothing_and_one_just_beyond_it_something() -> None:
    """The mass by which two neighbours' outputs differ: delta at epsilon 0, in closed form for one sampled Gaussian."""
    differs = 0.02 * (2 * NormalDist().cdf(1 / 16) - 1)
    assert epsilon([event(8.0, 0.02)], differs * 1.001) == 0
    assert epsilon([event(8.0, 0.02)], differs * 0.999) > 0


@pytest.mark.parametrize("target", [1e-6, 1e-3, 0.05])
@pytest.mark.parametrize("delta", [1e-3, *([1e-2] if PROFILE == "thorough" else [])])
def test_calibration_ends_where_delta_alone_covers_the_noisier_end(target: float, delta: float) -> None:
    noise = calibrate_training([], 0.02, 1, target, delta)
    assert epsilon([event(noise, 0.02)], delta) <= target
    assert epsilon([event(noise - 2e-3 * max(1.0, noise), 0.02)], delta) > 0.9 * target


@settings(max_examples=examples(12, thorough=200), deadline=None)
@given(st.integers(0, 2**32), st.floats(0.5, 8))
def test_the_filter_holds_along_any_adaptive_sequence_of_plans(seed: int, cap: float) -> None:
    """Whatever is admitted, one order of the grid bounds all of it at that order's own part of delta."""
    rng, rule, total = np.random.default_rng(seed), RdpFilter(cap, 1e-5), np.zeros(COORDINATES)
    for _ in range(30):
        plan = renyi_curve([event(float(rng.uniform(1, 30)), float(rng.choice([0.1, 1.0])), int(rng.integers(1, 20)))])
        if rule.admits(total + plan):
            total = total + plan
    orders = np.array(ORDERS, dtype=float)
    shares = rule._deltas
    assert shares.sum() == pytest.approx((1 - SET_ASIDE) * 1e-5)
    assert (
        total[:-1] + np.log1p(-1 / orders) - np.log(shares * orders) / (orders - 1)
    ).min() <= cap + 1e-6 or not total.any()


def test_calibration_is_bracketed_by_renyi_and_exact_by_loss_distributions() -> None:
    noise = calibrate_training([], 0.1, 100, 2.0, 1e-5)
    assert epsilon([event(noise, 0.1, 100)], 1e-5) <= 2.0 < epsilon_rdp([event(noise, 0.1, 100)], 1e-5)


def test_epochs_accounted_and_batches_run_cannot_be_told_apart_in_a_plan_because_there_is_one_number() -> None:
    """FLamby accounted 15 epochs and ran 15 times 100 steps: here the steps that run are the steps that are paid."""
    fields = {"rounds": 15, "local_steps": 100, "sampling_rate": 4 / 199, "clipping_norm": 1.0,
              "noise_multiplier": 1.2, "learning_rate": 0.1}  # fmt: skip
    for mistake in ({"epochs": 15}, {"accounted_steps": 750}, {"batch_size": 4}):
        with pytest.raises(ValidationError):
            TrainingPlan.model_validate({**fields, **mistake})
    plan = StudyPlan(delta=1e-4, training=TrainingPlan.model_validate(fields))
    steps = [privacy_event for privacy_event in plan.events() if privacy_event.label == "train"]
    assert sum(privacy_event.steps for privacy_event in steps) == 15 * 100
    assert {privacy_event.sampling_rate for privacy_event in steps} == {4 / 199}
    claimed = epsilon([event(1.2, 4 / 199, 15 * 50)], 1e-4)  # 15 epochs of 199 patients in batches of four
    assert epsilon(steps, 1e-4) > 1.3 * claimed
