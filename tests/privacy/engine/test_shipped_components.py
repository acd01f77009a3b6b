"""Every component and profile that ships: the fast engine, the general one and the definition agree."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.clinical_values import made_up
from kit.per_record_reference import clipped_sum_by_definition, largest_difference

from vht_federate.components.loader import load_model
from vht_federate.components.loss import loss_of
from vht_federate.components.registry import find_component, installed
from vht_federate.domain.plan import TrainingPlan
from vht_federate.privacy.engine import EngineChoice, EngineOptions, PerPatientEngine
from vht_federate.privacy.gradients import clipped_sum
from vht_federate.privacy.release import Private
from vht_federate.privacy.training import TrainingTensors, train_round
from vht_federate.testing import SeededNoise

SHIPPED = [(name, profile) for name, shipped in installed().items() for profile in shipped.component.profiles]
every_profile = pytest.mark.parametrize(("name", "profile"), SHIPPED)


def moved(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Away from weights of zero, where half of a gradient is easy."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.3 * torch.randn_like(value))
    return model


@every_profile
@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    counts=st.lists(st.sampled_from([0, 1, 2, 3, 7]), min_size=1, max_size=6),
    seed=st.integers(0, 2**16),
    clipping_norm=st.sampled_from([1e-3, 0.2, 1e3]),
)
def test_both_engines_give_the_sum_of_the_definition(
    name: str, profile: str, counts: list[int], seed: int, clipping_norm: float
) -> None:
    shipped = find_component(name)
    model, loss = moved(load_model(shipped.folder, profile).double(), seed % 7), loss_of(shipped.component)
    patient = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    values = torch.from_numpy(made_up(name, profile, len(patient), seed))
    outcome = torch.from_numpy((np.random.default_rng(seed).random(len(patient)) < 0.4).astype(float))
    engine = PerPatientEngine(model, loss)
    engine.prepare((values,), outcome)
    fast = engine.clipped_sum((values,), outcome, patient, len(counts), clipping_norm)
    general = clipped_sum(model, loss, values, outcome, patient, clipping_norm)
    expected = clipped_sum_by_definition(model, loss, (values,), outcome, patient, clipping_norm)
    assert engine.choice == EngineChoice("book-keeping")
    assert largest_difference(fast, expected) < 1e-10
    assert largest_difference(general, expected) < 1e-10


@every_profile
def test_a_round_is_the_same_whatever_memory_it_may_use_for_patients_with_1_to_1000_records(
    name: str, profile: str
) -> None:
    shipped, sizes = find_component(name), [1, 1000, 3, 17, 250, 1, 2, 999, 40]
    patient = np.repeat(np.arange(len(sizes)), sizes).astype(np.int64)
    values = made_up(name, profile, len(patient), 4).astype(np.float32)
    outcome = (np.random.default_rng(2).random(len(patient)) < 0.4).astype(np.float32)
    tensors = Private(TrainingTensors(values, outcome, patient, len(sizes)))
    plan = TrainingPlan(
        rounds=1, local_steps=3, sampling_rate=1.0, clipping_norm=0.1, noise_multiplier=1.0, learning_rate=1.0
    )
    weights, most = [], []
    for options in (EngineOptions(), EngineOptions(4096, 4096, 4096)):
        model, records = load_model(shipped.folder, profile), []
        model.register_forward_hook(lambda _m, given, _o, records=records: records.append(len(given[0])))
        engine = PerPatientEngine(model, loss_of(shipped.component), options)
        weights.append(train_round(engine, tensors, 9.0, plan, SeededNoise(1, scale=0.0)).weights)
        most.append(max(records))
    for parameter, value in weights[0].items():
        np.testing.assert_allclose(weights[1][parameter], value, rtol=1e-5, atol=1e-6)
    assert most[0] == len(patient)  # all at once, where memory allows
    assert most[1] <= 64
