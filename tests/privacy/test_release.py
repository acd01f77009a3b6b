import copy
import json
import pickle

import numpy as np
import pytest

from vht_federate.components.job import CohortArrays
from vht_federate.domain.split import TEST_BUCKETS
from vht_federate.errors import EgressError, InputError
from vht_federate.privacy.noise import SecureNoise
from vht_federate.privacy.release import Private, release_gaussian
from vht_federate.testing import SeededNoise

CANARY = 424242.0


@pytest.mark.parametrize(
    "show",
    [repr, str, lambda p: f"{p}", lambda p: f"{p!r:>40}", lambda p: "%s" % p, lambda p: repr([p])],  # noqa: UP031
)
def test_no_way_of_printing_shows_a_private_value(show) -> None:
    assert "4242" not in show(Private(np.array([CANARY])))


@pytest.mark.parametrize(
    "leak",
    [
        list,
        len,
        bool,
        float,
        int,
        bytes,
        np.asarray,
        sum,
        pickle.dumps,
        copy.deepcopy,
        lambda p: p[0],
        lambda p: p == CANARY,
        lambda p: p < CANARY,
        lambda p: CANARY in p,
        lambda p: np.array([1.0]) + p,
        lambda p: p.__value,
    ],
)
def test_a_private_value_does_not_convert_compare_iterate_or_pickle(leak) -> None:
    with pytest.raises((EgressError, TypeError, AttributeError)):
        leak(Private(np.array([CANARY])))


def test_json_does_not_take_a_private_value() -> None:
    with pytest.raises(TypeError):
        json.dumps({"x": Private(1.0)})


def test_map_stays_private() -> None:
    assert isinstance(Private(2).map(lambda x: x + 1), Private)


def test_released_noise_has_the_promised_scale() -> None:
    released = release_gaussian(Private(np.full(40_000, 7.0)), 2.0, 3.0, SecureNoise())
    assert abs(released.mean() - 7) < 0.15
    assert abs(released.std() / 6.0 - 1) < 0.02


def test_without_noise_the_value_itself_comes_out_as_float64() -> None:
    released = release_gaussian(Private(np.array([[1, 2]], dtype=np.int32)), 1.0, 1.0, SeededNoise(0, scale=0))
    assert released.dtype == np.float64
    assert released.tolist() == [[1.0, 2.0]]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_value_that_noise_cannot_hide_is_refused(bad: float) -> None:
    with pytest.raises(EgressError) as caught:
        release_gaussian(Private(np.array([1.0, bad])), 1.0, 1.0, SecureNoise())
    assert caught.value.code == "VHT-EGRESS-NONFINITE"


@pytest.mark.parametrize(("sensitivity", "multiplier"), [(0, 1), (1, 0), (-1, -1), (np.inf, 1), (1, np.nan)])
def test_a_scale_that_adds_no_noise_is_refused(sensitivity: float, multiplier: float) -> None:
    with pytest.raises(InputError):
        release_gaussian(Private(np.array([1.0])), sensitivity, multiplier, SecureNoise())


def test_train_and_test_patients_are_disjoint_and_together_everybody() -> None:
    arrays = CohortArrays(
        values=np.arange(12, dtype=np.float32).reshape(6, 2),
        outcome=np.array([0, 1, 0, 1, 0, 1], dtype=np.float32),
        patient=np.array([0, 0, 1, 2, 2, 3]),
        bucket=np.array([0, TEST_BUCKETS, TEST_BUCKETS - 1, 99], dtype=np.uint8),
    )
    train, test = arrays.of("train"), arrays.of("test")
    assert train.patient.tolist() == [0, 1]
    assert train.values[:, 0].tolist() == [4.0, 10.0]
    assert test.patient.tolist() == [0, 0, 1, 1]
    assert test.outcome.tolist() == [0, 1, 1, 0]
    assert train.patients + test.patients == arrays.of("all").patients == 4
    assert "4" not in repr(arrays)
