"""Clipped sums against the definition, for every layer, with records that hurt."""

from collections.abc import Sequence

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
from torch import Tensor

from vht_federate.privacy.engine import EngineOptions, PerPatientEngine

BCE = F.binary_cross_entropy_with_logits
SMALL = EngineOptions(activation_bytes=1, recurrent_bytes=1, gradient_bytes=1)
every_model = pytest.mark.parametrize("name", sorted(MODELS))
sizes = st.lists(st.sampled_from([0, 1, 1, 2, 3, 5, 9]), min_size=0, max_size=5)


def records(patient: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(len(patient), STEPS, WIDTH, generator=generator, dtype=torch.float64)
    return values, torch.randint(0, 2, (len(patient),), generator=generator).double()


def patients_of(counts: list[int]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts, dtype=torch.int64))


@every_model
@settings(max_examples=6, deadline=None, derandomize=True)
@given(
    counts=sizes,
    seed=st.integers(0, 2**16),
    clipping_norm=st.sampled_from([1e-3, 0.5, 1e3]),
    options=st.sampled_from([None, SMALL]),
    known_loss=st.booleans(),
)
def test_every_layer_gives_the_sum_of_the_definition(
    name: str, counts: list[int], seed: int, clipping_norm: float, options: EngineOptions | None, known_loss: bool
) -> None:
    model, patient, loss = build(name, seed % 5), patients_of(counts), BCE if known_loss else squared
    values, outcome = records(patient, seed)
    engine = PerPatientEngine(model, loss, options)
    sums = engine.clipped_sum((values,), outcome, patient, len(counts), clipping_norm)
    expected = clipped_sum_by_definition(model, loss, (values,), outcome, patient, clipping_norm)
    assert largest_difference(sums, expected) < 1e-10
    assert not len(patient) or engine.choice.name == engine_of(name)


@every_model
@settings(max_examples=4, deadline=None, derandomize=True)
@given(
    counts=st.lists(st.integers(1, 4), min_size=2, max_size=5),
    seed=st.integers(0, 2**16),
    bad=st.lists(
        st.tuples(st.integers(0, 99), st.sampled_from([torch.nan, torch.inf, -torch.inf, 1e30, -1e30, 1e200])),
        min_size=1,
        max_size=3,
    ),
)
def test_a_broken_record_costs_its_patient_alone(
    name: str, counts: list[int], seed: int, bad: list[tuple[int, float]]
) -> None:
    model, patient = build(name, seed % 5), patients_of(counts)
    values, outcome = records(patient, seed)
    for place, number in bad:
        values[place % len(values), place % STEPS, place % WIDTH] = number
    engine = PerPatientEngine(model, BCE)

    def definition(chosen: Sequence[int], norm: float) -> dict[str, Tensor]:
        own = torch.isin(patient, torch.tensor(chosen, dtype=torch.int64))
        return clipped_sum_by_definition(model, BCE, (values[own],), outcome[own], patient[own], norm)

    check_broken_patients_cost_themselves_alone(
        lambda norm: engine.clipped_sum((values,), outcome, patient, len(counts), norm),
        definition,
        range(len(counts)),
        sorted({int(patient[place % len(values)]) for place, _ in bad}),
        0.5,
    )


@every_model
@settings(max_examples=2, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**16), copies=st.integers(1, 30))
def test_duplicates_of_a_patients_record_change_nothing(name: str, seed: int, copies: int) -> None:
    model = build(name, seed % 5)
    values, outcome = records(torch.arange(3), seed)
    engine = PerPatientEngine(model, BCE)
    once = engine.clipped_sum((values,), outcome, torch.arange(3), 3, 0.1)
    repeated = torch.tensor([0] + [1] * copies + [2])
    often = engine.clipped_sum((values[repeated],), outcome[repeated], repeated, 3, 0.1)
    assert largest_difference(often, once) < 1e-10
