"""Batches of bounded size: what is drawn, what the rare cut costs, and who pays for it."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.false_alarms import RARE as FALSE_ALARM
from pydantic import ValidationError
from scipy import stats
from torch import nn

from strategies.plan import resolve_plan
from vht_federate.domain.budget import PrivacyEvent
from vht_federate.domain.plan import BatchLimit, TrainingPlan
from vht_federate.domain.study import PrivacyTargets, TrainingChoices
from vht_federate.errors import BudgetError, InputError, RefusedError
from vht_federate.packaging.statement import read_statement
from vht_federate.privacy.accounting import calibrate_training, epsilon, epsilon_by_population, epsilon_rdp
from vht_federate.privacy.engine import PerPatientEngine
from vht_federate.privacy.filters import RdpFilter
from vht_federate.privacy.noise import SecureNoise
from vht_federate.privacy.release import Private
from vht_federate.privacy.renyi import renyi_curve
from vht_federate.privacy.statement import privacy_statement
from vht_federate.privacy.training import TrainingTensors, train_round
from vht_federate.privacy.truncation import RARE, TruncatedPoisson, check_population, overflow_chance
from vht_federate.testing import SeededNoise

GRID = np.linspace(-12, 16, 20_001)


def density(patients: int, rate: float, batch: int, sigma: float) -> np.ndarray:
    """Of a sum to which each sampled patient adds one, at most ``batch`` of them, plus noise."""
    sampled = np.arange(patients + 1)
    weights = stats.binom.pmf(sampled, patients, rate)
    return stats.norm.pdf(GRID[:, None], np.minimum(sampled, batch), sigma) @ weights


def delta_between(first: np.ndarray, other: np.ndarray, eps: float) -> float:
    return float(np.trapezoid(np.maximum(first - math.exp(eps) * other, 0.0), GRID))


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


def event(batch: int | None, steps: int = 200, rate: float = 0.01, population: int = 10_000) -> PrivacyEvent:
    return PrivacyEvent(
        label="train",
        population="train",
        noise_multiplier=1.0,
        sampling_rate=rate,
        steps=steps,
        largest_batch=batch,
        largest_population=batch and population,
    )


def test_a_hundredth_of_delta_pays_for_overflows_and_where_it_cannot_there_is_no_epsilon() -> None:
    plain, roomy = epsilon([event(None)], 1e-5), epsilon([event(260)], 1e-5)
    assert plain < roomy < 1.01 * plain
    assert roomy == epsilon([event(None)], 0.99e-5)
    chance = overflow_chance([event(260)])
    assert 0 < (1 + math.exp(roomy)) * chance <= 1e-7
    assert epsilon([event(120)], 1e-5) == epsilon_rdp([event(120)], 1e-5) == math.inf
    assert epsilon([event(120), event(None)], 1e-5) == math.inf


def test_chances_add_up_over_events_and_their_steps() -> None:
    assert overflow_chance([event(150)]) == pytest.approx(200 * TruncatedPoisson(0.01, 150, 10_000).overflow)
    assert overflow_chance([event(150), event(None), event(150)]) == pytest.approx(2 * overflow_chance([event(150)]))
    assert overflow_chance([event(10_000)]) > 0  # a population that is larger than it looked


def test_the_curve_of_an_account_carries_the_chance_beside_the_divergences() -> None:
    curve = renyi_curve([event(150), event(None)])
    assert curve[-1] == overflow_chance([event(150)])
    assert np.array_equal(curve[:-1], renyi_curve([event(None)] * 2)[:-1])


def test_a_filter_admits_roomy_batches_and_no_plan_whose_batches_may_overflow() -> None:
    rule = RdpFilter(5.0, 1e-5)
    assert rule.fits([event(260)], [event(260)])
    assert not rule.fits([event(260)], [event(140)])
    assert not rule.fits((), [event(120)])
    chance = overflow_chance([event(fitting_batch())])
    assert (1 + math.exp(5.0)) * chance * 1000 < 1e-7  # thousands of such plans


def fitting_batch() -> int:
    return TruncatedPoisson.fitting(0.01, 10_000, 200).batch


def test_the_fitting_batch_is_the_smallest_that_hardly_ever_overflows() -> None:
    assert 180 < fitting_batch() < 230
    assert 200 * TruncatedPoisson(0.01, fitting_batch(), 10_000).overflow <= RARE
    assert 200 * TruncatedPoisson(0.01, fitting_batch() - 1, 10_000).overflow > RARE
    assert TruncatedPoisson.fitting(0.5, 20, 10).batch == 20


def test_calibration_pays_for_overflows_and_refuses_batches_that_are_too_small() -> None:
    noise = calibrate_training([], 0.01, 200, 1.0, 1e-5, overflow_chance([event(260)]))
    priced = [event(batch).model_copy(update={"noise_multiplier": noise}) for batch in (None, 260)]
    plain, truncated = (epsilon([step], 1e-5) for step in priced)
    assert 0.99 < plain < truncated <= 1.0
    with pytest.raises(BudgetError) as caught:
        calibrate_training([], 0.01, 200, 1.0, 1e-5, overflow_chance([event(120)]))
    assert caught.value.code == "VHT-BUDGET-INFEASIBLE"


@pytest.mark.parametrize(
    "parts",
    [{"largest_batch": 5}, {"largest_population": 5}, {"largest_batch": 0, "largest_population": 9}],
)
def test_half_a_bound_is_no_event(parts: dict) -> None:
    with pytest.raises(ValidationError):
        PrivacyEvent(label="t", population="train", noise_multiplier=1.0, **parts)


def test_a_study_that_names_its_largest_population_has_bounded_batches_in_its_plan_events_and_statement() -> None:
    targets = PrivacyTargets(epsilon=3.0, delta=1e-5)
    plan = resolve_plan(targets, TrainingChoices(sampling_rate=0.05, largest_population=4000))
    limit = plan.training.batch_limit
    assert limit == BatchLimit(patients=TruncatedPoisson.fitting(0.05, 4000, 60).batch, population=4000)
    private = [privacy_event for privacy_event in plan.events() if privacy_event.label == "train"]
    assert {(privacy_event.largest_batch, privacy_event.largest_population) for privacy_event in private} == {
        (limit.patients, 4000)
    }
    assert epsilon_by_population(plan.events(), 1e-5)["train"] <= 3.0
    stated = privacy_statement(plan, {"one": plan.events()})
    assert "a uniformly random part of them is kept" in stated["mechanism"]["sampling"]
    assert stated["mechanism"]["batch_limit"] == {"patients": limit.patients, "population": 4000}
    read_statement(json.loads(json.dumps(stated)))
    assert resolve_plan(targets, TrainingChoices(sampling_rate=1.0)).training.batch_limit is None


def bounded(population: int, batch: int = 50) -> TrainingPlan:
    return TrainingPlan(
        rounds=1,
        local_steps=40,
        sampling_rate=0.5,
        clipping_norm=1.0,
        noise_multiplier=1.0,
        learning_rate=0.1,
        count_noise_multiplier=10.0,
        batch_limit=BatchLimit(patients=batch, population=population),
    )


def test_whether_a_node_is_too_large_is_decided_by_its_noised_count_with_room_to_spare() -> None:
    check_population(bounded(1000), 880.0)
    with pytest.raises(RefusedError) as caught:
        check_population(bounded(1000), 880.5)
    assert caught.value.code == "VHT-REFUSED-SIZE"
    assert "880" not in caught.value.message
    check_population(bounded(1000).model_copy(update={"batch_limit": None}), 1e9)


def test_no_step_of_a_bounded_plan_uses_more_patients_than_its_bound() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head, self.seen = nn.Linear(2, 1), []

        def forward(self, values: torch.Tensor) -> torch.Tensor:
            self.seen.append(len(values))
            return self.head(values).squeeze(-1)

    model, ones = Model(), np.ones(200, dtype=np.float32)
    tensors = TrainingTensors(np.ones((200, 2), np.float32), ones, np.arange(200), 200)
    engine = PerPatientEngine(model, nn.functional.binary_cross_entropy_with_logits)
    engine.prepare((tensors.values,), tensors.outcome)
    model.seen.clear()
    train_round(engine, Private(tensors), 200.0, bounded(1000), SecureNoise())
    assert model.seen == [50] * 40  # about a hundred are drawn


def test_what_fits_is_the_plain_sample_and_what_does_not_is_cut_to_a_random_part_of_it() -> None:
    wide = TruncatedPoisson(0.3, 50, 100)
    assert np.array_equal(wide.sample(100, SeededNoise(1)), SeededNoise(1).poisson_sample(100, 0.3))
    narrow, times_kept = TruncatedPoisson(1.0, 3, 12), np.zeros(12)
    for _ in range(3000):
        sample = narrow.sample(12, SecureNoise())
        assert len(sample) == 3
        assert (np.diff(sample) > 0).all()
        times_kept[sample] += 1
    assert stats.chisquare(times_kept).pvalue > FALSE_ALARM  # each patient as often as any other
    assert len(narrow.sample(0, SecureNoise())) == 0


def test_more_patients_than_accounted_for_are_refused() -> None:
    with pytest.raises(RefusedError):
        TruncatedPoisson(0.1, 5, 10).sample(11, SecureNoise())


@pytest.mark.parametrize("parts", [(0.0, 1, 1), (1.1, 1, 1), (0.5, 0, 1), (0.5, 1, 0), (math.nan, 1, 1)])
def test_what_is_no_sampler_is_refused(parts: tuple[float, int, int]) -> None:
    with pytest.raises(InputError):
        TruncatedPoisson(*parts)
