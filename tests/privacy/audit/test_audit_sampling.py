import numpy as np
import pytest

from vht_federate.privacy.audit.broken_engines import _Shuffled
from vht_federate.privacy.audit.sampling import sampling_test
from vht_federate.privacy.noise import SecureNoise
from vht_federate.testing import SeededNoise

RNG = np.random.default_rng
POPULATION, RATE, STEPS = 5000, 0.02, 40
ALARM = 5e-4


def poisson(seed: int, rate: float = RATE) -> list[np.ndarray]:
    source = SeededNoise(seed)
    return [source.poisson_sample(POPULATION, rate) for _ in range(STEPS)]


def test_poisson_batches_of_the_real_sampler_pass() -> None:
    """One false alarm in two thousand is what the test is made for: three in a row are one in 10^9 runs."""
    source = SecureNoise()
    smallest = [
        sampling_test([source.poisson_sample(POPULATION, RATE) for _ in range(STEPS)], POPULATION, RATE).p
        for _ in range(3)
    ]
    assert max(smallest) > ALARM


def test_p_values_of_poisson_batches_are_not_too_small() -> None:
    smallest = [sampling_test(poisson(seed), POPULATION, RATE).p for seed in range(12)]
    assert np.mean(np.array(smallest) < 0.2) <= 0.5
    assert min(smallest) > ALARM


def test_shuffled_epochs_of_fixed_batches_are_seen_in_sizes_and_in_repeats() -> None:
    source = _Shuffled(SeededNoise(1))
    result = sampling_test([source.poisson_sample(POPULATION, RATE) for _ in range(STEPS)], POPULATION, RATE)
    assert result.sizes < ALARM
    assert result.repeats < ALARM


def test_fixed_sizes_are_seen_even_where_every_batch_is_drawn_anew() -> None:
    batches = [RNG(step).choice(POPULATION, 100, replace=False) for step in range(STEPS)]
    result = sampling_test(batches, POPULATION, RATE)
    assert result.sizes < ALARM < result.repeats


def test_shuffling_is_seen_even_where_sizes_vary_as_they_should() -> None:
    rng = RNG(3)
    order, batches = rng.permutation(POPULATION), []
    for _ in range(STEPS):
        size = rng.binomial(POPULATION, RATE)
        batches.append(order[:size])
        order = np.roll(order, -size)
    result = sampling_test(batches, POPULATION, RATE)
    assert result.repeats < ALARM < result.sizes


@pytest.mark.parametrize("factor", [0.8, 1.25])
def test_another_rate_than_claimed_is_seen(factor: float) -> None:
    assert sampling_test(poisson(5, RATE * factor), POPULATION, RATE).rate < ALARM
