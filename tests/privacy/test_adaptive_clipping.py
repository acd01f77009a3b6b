"""A clipping norm that follows a quantile, and what it costs: nothing more than the step is accounted for."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from connector.enclave.jobs import train
from vht_federate.components.job import CohortArrays, JobCall, VisitData
from vht_federate.components.loader import load_model
from vht_federate.components.registry import find_component
from vht_federate.domain.plan import AdaptiveClipping, StudyPlan, TrainingPlan
from vht_federate.domain.study import TrainingChoices
from vht_federate.privacy.clipped_count import Tally
from vht_federate.privacy.engine import Batch, EngineOptions, PerPatientEngine, noised_sum_and_count
from vht_federate.privacy.gradients import clipped_sum
from vht_federate.privacy.release import Private
from vht_federate.privacy.training import FARTHEST, TrainingTensors, train_round
from vht_federate.testing import SeededNoise

SHIPPED = find_component("cardio-risk")


def plan(**changes) -> TrainingPlan:
    chosen = {
        "rounds": 2,
        "local_steps": 5,
        "sampling_rate": 0.5,
        "clipping_norm": 1.0,
        "noise_multiplier": 2.0,
        "learning_rate": 1e-9,
        "adaptive_clipping": AdaptiveClipping(),
    }
    return TrainingPlan(**(chosen | changes))


class Towards(nn.Module):
    """A record's gradient is the record itself, whatever the weights are."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.head = nn.Linear(inputs, 1, bias=False)

    def forward(self, values: Tensor) -> Tensor:
        return self.head(values).squeeze(-1)


def along(outputs: Tensor, targets: Tensor) -> Tensor:
    return (outputs * targets).mean()


def of_lengths(lengths: np.ndarray) -> TrainingTensors:
    """One patient with one record for each gradient length."""
    values = np.zeros((len(lengths), 3), np.float32)
    values[:, 1] = lengths
    return TrainingTensors(values, np.ones(len(lengths), np.float32), np.arange(len(lengths)), len(lengths))


class Recorder(SeededNoise):
    def __init__(self) -> None:
        super().__init__(5)
        self.shapes: list[tuple[int, ...]] = []

    def gaussian(self, shape: tuple[int, ...]) -> np.ndarray:
        self.shapes.append(shape)
        return super().gaussian(shape)


@given(noise=st.floats(0.3, 50), share=st.floats(1e-3, 0.5))
def test_the_sum_and_the_count_together_have_the_noise_multiplier_that_is_accounted(noise: float, share: float) -> None:
    chosen = plan(noise_multiplier=noise, adaptive_clipping=AdaptiveClipping(share=share))
    assert chosen.sum_noise_multiplier > noise
    joint = chosen.sum_noise_multiplier**-2 + (2 * chosen.count_noise) ** -2
    assert math.isclose(joint, noise**-2, rel_tol=1e-12)
    study = StudyPlan(delta=1e-5, training=chosen)
    fixed = StudyPlan(delta=1e-5, training=plan(noise_multiplier=noise, adaptive_clipping=None))
    assert study.events() == fixed.events()


def test_a_step_draws_noise_for_the_sum_and_once_for_the_count_and_a_fixed_norm_only_for_the_sum() -> None:
    tensors, noise = Private(of_lengths(np.linspace(0.1, 2, 40))), Recorder()
    train_round(PerPatientEngine(Towards(3), along), tensors, 40.0, plan(), noise)
    assert noise.shapes == [(3,), ()] * 5
    noise = Recorder()
    trained = train_round(PerPatientEngine(Towards(3), along), tensors, 40.0, plan(adaptive_clipping=None), noise)
    assert noise.shapes == [(3,)] * 5
    assert trained.clipping_norm == 1.0


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    lengths=st.lists(st.floats(0, 1e6, width=32), min_size=1, max_size=8),
    norm=st.sampled_from([1e-3, 1.0, 1e3]),
    noise=st.floats(0.5, 5),
)
def test_one_patient_more_moves_what_a_step_releases_by_no_more_than_its_multiplier_covers(
    lengths: list[float], norm: float, noise: float
) -> None:
    chosen = plan(noise_multiplier=noise)
    tensors, engine = of_lengths(np.array(lengths)), PerPatientEngine(Towards(3), along)

    def released(patients: int) -> np.ndarray:
        batch = Private(tensors.records_of(np.arange(patients)))
        total, centred = noised_sum_and_count(
            engine, batch, norm, chosen.sum_noise_multiplier, chosen.count_noise, SeededNoise(0, scale=0.0)
        )
        scaled = total["head.weight"].numpy().ravel() / (norm * chosen.sum_noise_multiplier)
        return np.append(scaled, centred / chosen.count_noise)

    moved = np.linalg.norm(released(len(lengths)) - released(len(lengths) - 1))
    assert moved <= (1 + 1e-4) / noise


@pytest.mark.parametrize("quantile", [0.2, 0.5, 0.8])
def test_the_norm_finds_the_quantile_from_far_below_and_far_above(quantile: float) -> None:
    lengths = np.exp(np.random.default_rng(1).normal(size=4000))
    chosen = plan(
        local_steps=150, sampling_rate=0.25, noise_multiplier=1.0, adaptive_clipping=AdaptiveClipping(quantile=quantile)
    )
    for start in (0.05, 20.0):
        changed = chosen.model_copy(update={"clipping_norm": start})
        trained = train_round(
            PerPatientEngine(Towards(3), along), Private(of_lengths(lengths)), 4000.0, changed, SeededNoise(2)
        )
        assert abs(np.mean(lengths <= trained.clipping_norm) - quantile) < 0.06


def test_the_norm_stays_within_a_thousandfold_of_its_start() -> None:
    for lengths, end in ((np.zeros(100), 1 / FARTHEST), (np.full(100, 1e30), FARTHEST)):
        trained = train_round(
            PerPatientEngine(Towards(3), along), Private(of_lengths(lengths)), 100.0,
            plan(local_steps=30, adaptive_clipping=AdaptiveClipping(learning_rate=1.0)), SeededNoise(3),
        )  # fmt: skip
        assert trained.clipping_norm == pytest.approx(end)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    counts=st.lists(st.sampled_from([0, 1, 1, 2, 5, 40]), min_size=1, max_size=6),
    seed=st.integers(0, 2**16),
    norm=st.sampled_from([0.02, 0.2, 3.0]),
    small=st.booleans(),
    bad=st.sampled_from([None, math.nan, math.inf, 1e30]),
)
def test_every_way_counts_the_patients_within_the_norm(
    counts: list[int], seed: int, norm: float, small: bool, bad: float | None
) -> None:
    torch.manual_seed(seed % 5)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1), nn.Flatten(0)).double()
    generator = torch.Generator().manual_seed(seed)
    patient = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    values = torch.randn(len(patient), 3, generator=generator, dtype=torch.float64)
    if bad is not None and len(values):
        values[seed % len(values), 1] = bad
    targets = torch.ones(len(patient), dtype=torch.float64)
    loss = nn.functional.binary_cross_entropy_with_logits
    fast, general = Tally(), Tally()
    options = EngineOptions(1, 1, 1) if small else None
    batch = Batch((values,), targets, patient, len(counts))
    batch.clipped_sum(PerPatientEngine(model, loss, options), norm, dict(model.named_parameters()), fast)
    clipped_sum(model, loss, values, targets, patient, norm, general)
    expected = Tally()
    for patient_index in patient.unique().tolist():
        whole = clipped_sum(
            model, loss, *(part[patient == patient_index] for part in (values, targets, patient)), 1e300
        )
        alone = float(torch.cat([part.flatten() for part in whole.values()]).norm())
        finite = bool(torch.isfinite(values[patient == patient_index]).all())
        expected.add(int(finite and alone <= norm), int(finite))
    assert (fast.within, fast.seen) == (general.within, general.seen) == (expected.within, expected.seen)
    assert "1" not in repr(fast)


def test_an_enclaves_next_round_starts_where_the_norm_was_left() -> None:
    rng, patients = np.random.default_rng(0), 120
    values = rng.normal(60, 30, size=(patients, len(SHIPPED.component.inputs("cardiometabolic")))).astype(np.float32)
    cohort = CohortArrays(
        values, np.ones(patients, np.float32), np.arange(patients), np.full(patients, 99, dtype=np.uint8)
    )
    model = load_model(SHIPPED.folder, "cardiometabolic")
    weights = {name: value.detach().numpy().copy() for name, value in model.named_parameters()}
    released: dict[tuple[str, int], dict] = {}
    data = VisitData(
        component=SHIPPED.component,
        profile="cardiometabolic",
        plan=StudyPlan(delta=1e-5, training=plan(clipping_norm=0.01, sampling_rate=1.0)),
        codebook=None,
        cohort=Private(cohort),
        noise=SeededNoise(1, scale=0.0),
        build_model=lambda: model,
        released=released,
    )
    released["train", 1] = train(data, JobCall("train", 1, {}, weights)).result
    released["train", 2] = train(data, JobCall("train", 2, {}, weights)).result
    steps = math.exp(0.2 * 0.5 * 5)  # nobody stays within so small a norm
    assert released["train", 1]["clipping_norm"] == pytest.approx(0.01 * steps)
    assert released["train", 2]["clipping_norm"] == pytest.approx(0.01 * steps**2)


@pytest.mark.parametrize("bad", [{"quantile": 0.0}, {"quantile": 1.0}, {"share": 0.0}, {"share": 0.9}, {"norm": 1}])
def test_choices_without_meaning_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        TrainingChoices(adaptive_clipping=bad)
