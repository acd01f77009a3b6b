"""Patients in slots: the same sums as ever, by one program that looks at no number and whose shapes never change."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.models import MODELS, STEPS, WIDTH, build, engine_of, squared
from kit.per_record_reference import (
    check_broken_patients_cost_themselves_alone,
    clipped_sum_by_definition,
    largest_difference,
)
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from vht_federate.domain.plan import AdaptiveClipping, BatchLimit, TrainingPlan
from vht_federate.privacy.clipped_count import Tally
from vht_federate.privacy.engine import EngineOptions, FixedBatch, PerPatientEngine, trained
from vht_federate.privacy.engine.program import Program
from vht_federate.privacy.engine.refusal import names_of
from vht_federate.privacy.engine.slots import Slots, slots_for
from vht_federate.privacy.release import Private
from vht_federate.privacy.training import TrainingTensors, train_round
from vht_federate.testing import SeededNoise

BCE = F.binary_cross_entropy_with_logits
FIXED, LOOSE = EngineOptions(fixed_shapes="always"), EngineOptions(fixed_shapes="never")
fast_models = pytest.mark.parametrize("name", sorted(name for name in MODELS if engine_of(name) == "book-keeping"))
# What a recorded graph cannot hold: a number that the host reads, a shape that depends on numbers.
FORBIDDEN = ("_local_scalar_dense", "nonzero", "masked_select", "unique", "bincount", "is_nonzero")


def cohort(counts: list[int], seed: int, shape: tuple[int, ...] = (STEPS, WIDTH)) -> TrainingTensors:
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(len(counts)), counts)
    return TrainingTensors(
        rng.normal(size=(len(patient), *shape)), (rng.random(len(patient)) < 0.5).astype(float), patient, len(counts)
    )


def expected(model: nn.Module, loss, held: TrainingTensors, chosen: np.ndarray, norm: float) -> dict[str, Tensor]:
    rows = held.records_of(chosen)
    return clipped_sum_by_definition(model, loss, rows.inputs, rows.targets, rows.patient, norm)


@fast_models
@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    counts=st.lists(st.sampled_from([0, 1, 2, 3]), min_size=1, max_size=7).filter(any),
    drawn=st.lists(st.booleans(), min_size=7, max_size=7),
    slots=st.integers(1, 8),
    norm=st.sampled_from([1e-3, 0.5, 1e3]),
    known_loss=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_every_layer_gives_the_sum_of_the_definition_whoever_was_drawn(
    name: str, counts: list[int], drawn: list[bool], slots: int, norm: float, known_loss: bool, seed: int
) -> None:
    model, tensors, loss = build(name, seed % 5), cohort(counts, seed), BCE if known_loss else squared
    chosen = np.flatnonzero(drawn[: len(counts)])
    engine = PerPatientEngine(model, loss, FIXED)
    engine.prepare((tensors.values,), tensors.outcome)
    batch = tensors.batch_of(chosen, Slots(slots, max(counts)))
    assert isinstance(batch, FixedBatch)
    tally, other = Tally(), Tally()
    sums = batch.clipped_sum(engine, norm, trained(model), tally)
    assert largest_difference(sums, expected(model, loss, tensors, chosen, norm)) < 1e-10
    tensors.records_of(chosen).clipped_sum(PerPatientEngine(model, loss), norm, trained(model), other)
    assert (tally.within, tally.seen) == (other.within, other.seen)


@fast_models
@pytest.mark.parametrize("number", [torch.nan, torch.inf, 1e30, 1e200])
def test_a_broken_record_costs_its_patient_alone(name: str, number: float) -> None:
    model, tensors = build(name, 2), cohort([2, 1, 3, 1], 3)
    tensors.values[1, 0, 0] = number
    engine = PerPatientEngine(model, BCE, FIXED)
    engine.prepare((tensors.values,), tensors.outcome)
    batch = tensors.batch_of(np.array([0, 1, 3]), Slots(4, 3))
    check_broken_patients_cost_themselves_alone(
        lambda norm: batch.clipped_sum(engine, norm, trained(model)),
        lambda chosen, norm: expected(model, BCE, tensors, np.array(chosen, dtype=np.int64), norm),
        [0, 1, 3],
        [0],
        0.5,
    )


class Watch(TorchDispatchMode):
    """Every operation with the shapes of what it made."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, tuple[tuple[int, ...], ...]]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        parts = result if isinstance(result, tuple | list) else (result,)
        self.seen.append((str(func), tuple(tuple(part.shape) for part in parts if isinstance(part, Tensor))))
        return result


@fast_models
def test_the_program_is_the_same_for_any_draw_and_reads_no_number(name: str) -> None:
    """So a CUDA graph of one draw is right for all others."""
    model, tensors = build(name, 1), cohort([2, 1, 0, 3, 1, 1], 5)
    engine = PerPatientEngine(model, BCE, FIXED)
    engine.prepare((tensors.values,), tensors.outcome)
    slots, runs = Slots(4, 3), []
    for chosen in ([], [0], [1, 2, 3], [0, 3, 4, 5]):
        batch = tensors.batch_of(np.array(chosen, dtype=np.int64), slots)
        batch.clipped_sum(engine, 0.5, trained(model))  # makes the program
        with Watch() as watch:
            engine._program._compute()
        runs.append(watch.seen)
    assert all(run == runs[0] for run in runs)
    assert len(runs[0]) > 5
    assert not [op for op, _ in runs[0] if any(word in op for word in FORBIDDEN)]


@fast_models
def test_the_program_runs_on_a_device_that_holds_no_numbers(name: str) -> None:
    """torch's meta device: nothing can be read, and nothing of the host can have slipped in."""
    model, tensors = build(name, 1), cohort([2, 1, 3], 5)
    engine = PerPatientEngine(model, BCE)
    engine.prepare((tensors.values,), tensors.outcome)
    model.to("meta")
    parameters = trained(model)
    clip = partial(engine._clipped, names_of(parameters))
    inputs, outcome = (torch.cat([tensor, tensor[:1]]).to("meta") for tensor in (tensors.values, tensors.outcome))
    flat, counts = Program(clip, parameters, (inputs,), outcome, Slots(4, 3), graphs=False)._compute()
    assert flat.device.type == counts.device.type == "meta"
    assert flat.shape == (sum(value.numel() for value in parameters.values()),)


def plan(**changes) -> TrainingPlan:
    chosen = {
        "rounds": 2,
        "local_steps": 6,
        "sampling_rate": 0.4,
        "clipping_norm": 0.5,
        "noise_multiplier": 1.0,
        "learning_rate": 0.3,
        "momentum": 0.5,
    }
    return TrainingPlan(**(chosen | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"adaptive_clipping": AdaptiveClipping()},
        {"batch_limit": BatchLimit(patients=9, population=60)},
        {"noise_precision": "float32"},
    ],
)
@pytest.mark.parametrize("name", ["stack", "gru", "transformer", "a bare parameter"])
def test_a_round_in_fixed_shapes_leaves_the_same_weights(name: str, changes: dict) -> None:
    tensors, weights, norms = cohort([1, 2, 1, 1, 2] * 8, 4), [], []
    for options in (FIXED, LOOSE):
        engine = PerPatientEngine(build(name, 3), BCE, options)
        result = train_round(engine, Private(tensors), 40.0, plan(**changes), SeededNoise(8))
        weights.append(result.weights)
        norms.append(result.clipping_norm)
        used = engine._program is not None
        assert used == (options is FIXED and engine_of(name) == "book-keeping")
    for key, value in weights[0].items():
        np.testing.assert_allclose(value, weights[1][key], rtol=1e-5, atol=1e-6)
    assert norms[0] == norms[1]


def test_weights_that_change_in_place_and_another_cohort_are_seen() -> None:
    model = build("stack", 1)
    engine = PerPatientEngine(model, BCE, FIXED)
    for seed in (1, 2):
        tensors = cohort([1] * 5, seed)
        engine.prepare((tensors.values,), tensors.outcome)
        for _ in range(2):
            sums = tensors.batch_of(np.arange(5), Slots(5, 1)).clipped_sum(engine, 0.5, trained(model))
            assert largest_difference(sums, expected(model, BCE, tensors, np.arange(5), 0.5)) < 1e-10
            with torch.no_grad():
                for value in model.parameters():
                    value.mul_(1.1)


def test_a_model_that_fails_on_empty_room_takes_the_other_way() -> None:
    class Strict(nn.Linear):
        def forward(self, values: Tensor) -> Tensor:
            if values.detach().abs().sum((1, 2)).eq(0).any().item():
                raise ValueError
            return super().forward(values).mean(1).squeeze(-1)

    tensors, model = cohort([1, 2, 1, 1], 4), Strict(WIDTH, 1).double()
    engine = PerPatientEngine(model, BCE, FIXED)
    engine.prepare((tensors.values,), tensors.outcome)
    slots = engine.slots(tensors.sizes, 3.0, None, "cpu")
    sums = tensors.batch_of(np.arange(4), slots).clipped_sum(engine, 0.5, trained(model))
    assert largest_difference(sums, expected(model, BCE, tensors, np.arange(4), 0.5)) < 1e-10
    assert slots is not None
    assert engine.slots(tensors.sizes, 3.0, None, "cpu") is None


def test_slots_hold_the_bound_or_a_little_more_than_the_expected_batch_and_equal_turns_where_memory_is_short() -> None:
    ones = np.ones(1000, dtype=np.int64)
    assert slots_for(ones, 100.0, None, 10_000) == Slots(140, 1)
    assert slots_for(ones, 100.0, 120, 10_000) == Slots(120, 1)
    assert slots_for(ones, 100.0, 120, 50) == Slots(40, 1)
    assert slots_for(2 * ones, 100.0, 120, 100) == Slots(40, 2)
    assert slots_for(ones[:30], 100.0, 120, 10_000) == Slots(30, 1)
    assert slots_for(ones[:0], 0.0, None, 10_000) == Slots(1, 1)


def test_one_patient_with_far_more_records_than_most_is_no_reason_to_work_on_empty_room() -> None:
    sizes = np.ones(100, dtype=np.int64)
    sizes[7] = 50
    assert slots_for(sizes, 20.0, None, 10_000) is None
    assert slots_for(sizes, 20.0, None, 40) is None


def test_fixed_shapes_are_for_gpus_unless_asked_for() -> None:
    assert not EngineOptions().fixes_shapes_on("cpu")
    assert EngineOptions().fixes_shapes_on("cuda")
    assert not EngineOptions(fixed_shapes="never").fixes_shapes_on("cuda")
    assert EngineOptions.of("cuda").gradient_bytes > EngineOptions.of("cpu").gradient_bytes


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: graphs are recorded on one")
@fast_models
def test_a_recorded_graph_gives_the_sums_of_the_definition(name: str) -> None:
    model = build(name, 1)
    on_host = cohort([2, 1, 0, 3, 1, 1], 5)
    patient = np.repeat(np.arange(6), np.diff(on_host.first))
    tensors = TrainingTensors(on_host.values.numpy(), on_host.outcome.numpy(), patient, 6, "cuda")
    on_gpu = build(name, 1).to("cuda")
    engine = PerPatientEngine(on_gpu, BCE, EngineOptions.of("cuda"))
    engine.prepare((tensors.values,), tensors.outcome)
    for chosen in (np.array([0, 3]), np.arange(6), np.array([1])):
        sums = tensors.batch_of(chosen, Slots(4, 3)).clipped_sum(engine, 0.5, trained(on_gpu))
        assert engine._program._graph is not None
        on_cpu = {key: value.cpu() for key, value in sums.items()}
        assert largest_difference(on_cpu, expected(model, BCE, on_host, chosen, 0.5)) < 1e-8
