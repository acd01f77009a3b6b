import numpy as np
import pytest
import torch
from kit.false_alarms import SIGMAS
from torch import nn

from vht_federate.domain.plan import TrainingPlan
from vht_federate.errors import ComponentError, WireError
from vht_federate.privacy.engine import PerPatientEngine
from vht_federate.privacy.noise import SecureNoise
from vht_federate.privacy.release import Private
from vht_federate.privacy.training import TrainingTensors, load_weights, noised_count, train_round
from vht_federate.testing import SeededNoise

BCE = nn.functional.binary_cross_entropy_with_logits


class Recorder:
    """A NoiseSource that writes down what was asked of it."""

    def __init__(self, scale: float = 1.0) -> None:
        self.inner = SeededNoise(3, scale=scale)
        self.normals: list[tuple[int, ...]] = []
        self.samples: list[tuple[int, float]] = []

    def gaussian(self, shape):
        self.normals.append(shape)
        return self.inner.gaussian(shape)

    def uniform(self, size):
        return self.inner.uniform(size)

    def poisson_sample(self, population, rate):
        self.samples.append((population, rate))
        return self.inner.poisson_sample(population, rate)


class Logits(nn.Linear):
    def __init__(self, inputs: int) -> None:
        super().__init__(inputs, 1)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x):
        return super().forward(x).squeeze(-1)


def engine(model: nn.Module) -> PerPatientEngine:
    return PerPatientEngine(model, BCE)


def plan(**changes) -> TrainingPlan:
    chosen = {
        "rounds": 1,
        "local_steps": 7,
        "sampling_rate": 0.5,
        "clipping_norm": 1.0,
        "noise_multiplier": 1.0,
        "learning_rate": 0.5,
    }
    return TrainingPlan(**(chosen | changes))


def cohort(patients: int = 60, inputs: int = 3, seed: int = 0) -> TrainingTensors:
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), rng.integers(1, 4, patients))
    values = rng.normal(size=(len(patient), inputs)).astype(np.float32)
    outcome = (values[:, 0] + rng.normal(size=len(patient)) > 0).astype(np.float32)
    return TrainingTensors(values, outcome, patient.astype(np.int64), patients)


def test_what_runs_is_what_the_plan_says() -> None:
    noise = Recorder()
    train_round(engine(Logits(3)), Private(cohort()), 60.0, plan(), noise)
    assert noise.samples == [(60, 0.5)] * 7
    assert noise.normals == [(4,)] * 7


def test_a_model_without_per_patient_gradients_is_refused_before_anything_is_drawn() -> None:
    model, noise = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.Linear(2, 1), nn.Flatten(0)), Recorder()
    model[1].eval()  # passes the first look
    gradients = engine(model)
    model[1].train()
    with pytest.raises(ComponentError, match="no per-patient gradients"):
        train_round(gradients, Private(cohort()), 60.0, plan(), noise)
    assert noise.samples == noise.normals == []


def test_noise_has_the_planned_scale_where_nobody_contributes() -> None:
    nobody = TrainingTensors(
        np.zeros((0, 5000), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64), patients=40
    )
    chosen = plan(local_steps=1, noise_multiplier=3.0, clipping_norm=2.0, learning_rate=1.0)
    weights = train_round(engine(Logits(5000)), Private(nobody), 40.0, chosen, SecureNoise())
    assert abs(np.std(weights.weights["weight"]) / (3.0 * 2.0 / (0.5 * 40.0)) - 1) < SIGMAS / np.sqrt(2 * 5000)


def test_without_noise_on_everybody_it_is_plain_gradient_descent_with_momentum_and_decay() -> None:
    tensors, chosen = cohort(), plan(sampling_rate=1.0, clipping_norm=1e6, momentum=0.6, weight_decay=0.1)
    result = train_round(engine(Logits(3)), Private(tensors), 60.0, chosen, SeededNoise(0, scale=0.0))

    model = Logits(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.6, weight_decay=0.1)
    sizes = np.diff(tensors.first)
    weight = torch.from_numpy(np.repeat(1 / sizes / 60, sizes).astype(np.float32))
    for _ in range(7):
        optimizer.zero_grad()
        (BCE(model(tensors.values), tensors.outcome, reduction="none") * weight).sum().backward()
        optimizer.step()
    np.testing.assert_allclose(result.weights["weight"], model.weight.detach().numpy(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(result.weights["bias"], model.bias.detach().numpy(), rtol=1e-4, atol=1e-6)


def test_it_learns() -> None:
    tensors = cohort(patients=800)
    weights = train_round(
        engine(Logits(3)), Private(tensors), 800.0, plan(local_steps=40, noise_multiplier=2), SecureNoise()
    )
    scores = tensors.values.numpy() @ weights.weights["weight"][0]
    assert np.mean((scores > 0) == tensors.outcome.numpy().astype(bool)) > 0.7


def test_the_weights_that_leave_are_the_weights_that_the_model_keeps() -> None:
    model = Logits(3)
    weights = train_round(engine(model), Private(cohort()), 60.0, plan(), SecureNoise()).weights
    second_model = Logits(3)
    load_weights(second_model, weights)
    assert torch.equal(model.weight, second_model.weight)
    assert all(value.dtype == np.float32 for value in weights.values())


def test_records_of_chosen_patients_are_theirs_also_for_patients_without_records() -> None:
    patient = np.array([0, 0, 2, 3, 3, 3])
    tensors = TrainingTensors(
        np.arange(6, dtype=np.float32)[:, None], np.zeros(6, np.float32), patient.astype(np.int64), patients=5
    )
    batch = tensors.records_of(np.array([0, 1, 3, 4]))
    assert batch.inputs[0][:, 0].tolist() == [0, 1, 3, 4, 5]
    assert batch.patient.tolist() == [0, 0, 3, 3, 3]
    assert len(tensors.records_of(np.array([], dtype=np.int64)).targets) == 0


def test_the_released_count_is_noised_and_never_below_one() -> None:
    tensors = Private(cohort(patients=60))
    draws, noise = 1000, SecureNoise()
    counts = [noised_count(tensors, plan(count_noise_multiplier=10), noise) for _ in range(draws)]
    assert abs(np.std(counts) / 10 - 1) < SIGMAS / np.sqrt(2 * draws)  # six deviations above one: never cut there
    assert min(noised_count(tensors, plan(count_noise_multiplier=500), noise) for _ in range(50)) == 1.0


@pytest.mark.parametrize(
    "weights",
    [
        {},
        {"weight": np.zeros((1, 3), np.float32)},
        {"weight": np.zeros((1, 4), np.float32), "bias": np.zeros(1, np.float32)},
        {"weight": np.full((1, 3), np.nan, np.float32), "bias": np.zeros(1, np.float32)},
        {"weight": np.zeros((1, 3), np.float32), "bias": np.zeros(1, np.float32), "more": np.zeros(1, np.float32)},
    ],
)
def test_weights_of_another_model_are_refused(weights) -> None:
    model = Logits(3)
    with pytest.raises(WireError) as caught:
        load_weights(model, weights)
    assert caught.value.code == "VHT-WIRE-WEIGHTS"
    assert (model.weight == 0).all()
