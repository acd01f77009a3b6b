import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.false_alarms import SIGMAS

from vht_federate.errors import BudgetError, InputError
from vht_federate.privacy.ledger import Account
from vht_federate.privacy.noise import SecureNoise
from vht_federate.privacy.release import Private
from vht_federate.privacy.statistics import Count, Histogram, Mean, PatientValues, Quantiles
from vht_federate.testing import SeededNoise

STATISTICS = [
    Count(1.0),
    Histogram(1.0, edges=(0.0, 1.0, 2.5, 10.0)),
    Mean(1.0, lower=-3.0, upper=7.0),
    Quantiles(1.0, lower=-5.0, upper=5.0, probabilities=(0.5,), levels=4),
]
NOISELESS = SeededNoise(0, scale=0.0)

records = st.lists(st.floats(width=32) | st.sampled_from([math.nan, math.inf, -math.inf, 1e30, -1e30]), max_size=5)


def values_of(patients: list[list[float]]) -> PatientValues:
    sizes = [len(patient) for patient in patients]
    values = np.array([value for patient in patients for value in patient], dtype=np.float64)
    return PatientValues(values, np.repeat(np.arange(len(patients)), sizes).astype(np.int64), len(patients))


def numbers(*values: float) -> Private[PatientValues]:
    return Private(values_of([[value] for value in values]))


@pytest.mark.parametrize("statistic", STATISTICS, ids=lambda statistic: type(statistic).__name__)
@settings(max_examples=30, deadline=None)
@given(others=st.lists(records, max_size=6), patient=records, place=st.integers(0, 6))
def test_one_patient_more_moves_a_release_by_its_sensitivity_at_most(statistic, others, patient, place) -> None:
    place = min(place, len(others))
    with_patient = statistic._exact(values_of([*others[:place], patient, *others[place:]]))
    without = statistic._exact(values_of(others))
    assert np.linalg.norm(with_patient - without) <= statistic.l2_sensitivity * (1 + 1e-12)


@pytest.mark.parametrize(
    ("statistic", "patient"),
    [
        (STATISTICS[0], []),
        (STATISTICS[1], [4.0]),
        (STATISTICS[2], [7.0]),
        (STATISTICS[3], [0.0]),
    ],
    ids=lambda argument: type(argument).__name__,
)
def test_the_sensitivity_is_reached(statistic, patient) -> None:
    moved = np.linalg.norm(statistic._exact(values_of([patient])) - statistic._exact(values_of([])))
    assert moved == pytest.approx(statistic.l2_sensitivity)


@pytest.mark.parametrize("statistic", STATISTICS, ids=lambda statistic: type(statistic).__name__)
def test_a_release_draws_noise_once_on_all_its_numbers_at_the_scale_of_its_event(statistic) -> None:
    class Recorder(SeededNoise):
        shapes: tuple = ()

        def gaussian(self, shape):
            self.shapes = (*self.shapes, shape)
            return super().gaussian(shape)

    noise = Recorder(0)
    statistic.release(numbers(1.0, 2.0), noise)
    assert noise.shapes == (statistic._exact(values_of([])).shape,)
    event = statistic.event("test")
    assert (event.noise_multiplier, event.sampling_rate, event.steps) == (statistic.noise_multiplier, 1.0, 1)
    assert event.population == "test"


def test_noise_has_its_stated_scale() -> None:
    draws, data, noise = 1500, numbers(*[0.0] * 40), SecureNoise()
    counts = [Count(5.0).release(data, noise) for _ in range(draws)]
    assert abs(np.mean(counts) - 40) < SIGMAS * 5.0 / math.sqrt(draws)
    assert abs(np.std(counts) / 5.0 - 1) < SIGMAS / math.sqrt(2 * draws)
    tree = Quantiles(3.0, lower=0, upper=1, probabilities=(0.5,), levels=8)
    assert tree.l2_sensitivity == 3.0


def test_without_noise_the_statistics_are_the_plain_ones() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(2.0, 1.5, 3000)
    data = numbers(*values)
    clipped = np.clip(values, -3, 7)
    assert Count(1.0).release(data, NOISELESS) == 3000
    assert Mean(1.0, lower=-3, upper=7).release(data, NOISELESS) == pytest.approx(clipped.mean())
    edges = (-3.0, 0.0, 2.0, 7.0)
    histogram = Histogram(1.0, edges=edges).release(data, NOISELESS)
    assert histogram.tolist() == np.histogram(clipped, bins=np.array(edges))[0].tolist()
    probabilities = (0.05, 0.25, 0.5, 0.75, 0.95)
    quantiles = Quantiles(1.0, lower=-3, upper=7, probabilities=probabilities, levels=10).release(data, NOISELESS)
    plain = np.quantile(clipped, probabilities, method="inverted_cdf")
    np.testing.assert_allclose(quantiles, plain, atol=10 / 2**10 / 2 + 1e-9)


def test_with_ordinary_noise_they_are_near() -> None:
    values = np.random.default_rng(1).normal(2.0, 1.5, 5000)
    data = numbers(*values)
    assert Mean(4.0, lower=-3, upper=7).release(data, SecureNoise()) == pytest.approx(values.mean(), abs=0.05)
    quantiles = Quantiles(4.0, lower=-3, upper=7, probabilities=(0.25, 0.5, 0.75)).release(data, SecureNoise())
    np.testing.assert_allclose(quantiles, np.quantile(values, (0.25, 0.5, 0.75)), atol=0.35)


def test_a_patient_counts_once_whatever_its_number_of_records() -> None:
    data = Private(values_of([[1.0] * 1000, [3.0], [math.nan], []]))
    assert Mean(1.0, lower=0, upper=4).release(data, NOISELESS) == pytest.approx(2.0)
    assert Histogram(1.0, edges=(0.0, 2.0, 4.0)).release(data, NOISELESS).tolist() == [1, 1]
    assert Count(1.0).release(data, NOISELESS) == 4


def test_an_empty_dataset_has_answers_too() -> None:
    nobody = Private(values_of([]))
    assert Mean(1.0, lower=0, upper=4).release(nobody, NOISELESS) == 2.0
    quantiles = Quantiles(1.0, lower=0, upper=4, probabilities=(0.0, 0.5, 1.0)).release(nobody, SecureNoise())
    assert ((quantiles >= 0) & (quantiles <= 4)).all()
    assert (np.diff(quantiles) >= 0).all()


def test_a_ledger_reserves_draws_and_refuses_statistics_like_any_release() -> None:
    events = [statistic.event("train") for statistic in (Count(8.0), Mean(8.0, lower=0, upper=1))]
    account = Account(epsilon=1.0, delta=1e-5).reserve("visit", events).draw("visit", events)
    assert 0 < account.epsilon_spent()["train"] <= 1.0
    assert account.epsilon_spent()["test"] == 0.0
    with pytest.raises(BudgetError):
        account.reserve("another", [Histogram(1.0, edges=(0.0, 1.0)).event("train")])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Count(0.0),
        lambda: Count(math.inf),
        lambda: Mean(1.0, lower=1.0, upper=1.0),
        lambda: Mean(1.0, lower=0.0, upper=math.inf),
        lambda: Histogram(1.0, edges=(0.0,)),
        lambda: Histogram(1.0, edges=(0.0, 2.0, 1.0)),
        lambda: Histogram(1.0, edges=(0.0, math.nan)),
        lambda: Quantiles(1.0, lower=0, upper=1, probabilities=()),
        lambda: Quantiles(1.0, lower=0, upper=1, probabilities=(1.1,)),
        lambda: Quantiles(1.0, lower=0, upper=1, probabilities=(0.5,), levels=0),
    ],
)
def test_parameters_that_have_no_sensitivity_are_refused(make) -> None:
    with pytest.raises(InputError):
        make()


def test_values_do_not_print_themselves() -> None:
    assert "1.5" not in repr(values_of([[1.5]])) + str(numbers(1.5))
