"""In the model's own precision: no patient moves a sum by more than the clipping norm, however its records cancel."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.clinical_values import made_up
from kit.models import MODELS, STEPS, WIDTH, build
from torch import Tensor, nn

from vht_federate.components.loader import load_model
from vht_federate.components.loss import loss_of
from vht_federate.components.registry import find_component
from vht_federate.privacy.engine import EngineOptions, PerPatientEngine

ROUNDING = 1.0 + 1e-3
BCE = F.binary_cross_entropy_with_logits


def length_of_sum(
    model: nn.Module, loss, values: Tensor, targets: Tensor, norm: float, options: EngineOptions | None = None
) -> float:
    """Of one patient with all records, over the clipping norm."""
    engine = PerPatientEngine(model, loss, options)
    total = engine.clipped_sum((values,), targets, torch.zeros(len(values), dtype=torch.int64), 1, norm)
    return float(torch.cat([part.double().flatten() for part in total.values()]).norm()) / norm


@pytest.mark.parametrize("name", sorted(MODELS))
@settings(max_examples=5, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**16),
    size=st.sampled_from([1.0, 1e3, 1e6]),
    copies=st.integers(1, 4),
    apart=st.sampled_from([0.0, 1e-6, 1e-4, 1e-2]),
    norm=st.sampled_from([1e-6, 1e-3, 1.0]),
)
def test_nearly_opposite_records_of_one_patient_stay_within_the_norm(
    name: str, seed: int, size: float, copies: int, apart: float, norm: float
) -> None:
    model = build(name, seed % 5).float()
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(size ** (1 / 4))
    generator = torch.Generator().manual_seed(seed)
    record = torch.randn(1, STEPS, WIDTH, generator=generator) * size**0.5
    values = record.repeat(2 * copies, 1, 1)
    values[::2] *= 1 + apart
    outcome = torch.tensor([0.0, 1.0]).repeat(copies)
    assert length_of_sum(model, BCE, values, outcome, norm) <= ROUNDING


@pytest.mark.parametrize("size", [1e1, 1e3, 1e4, 1e6])
@pytest.mark.parametrize("apart", [3e-5, 1e-3])
def test_a_wide_layer_whose_two_gradients_cancel_stays_within_the_norm(size: float, apart: float) -> None:
    worst = 0.0
    for seed in range(30):
        generator = torch.Generator().manual_seed(seed)
        model = nn.Linear(64, 64, bias=False)
        nn.init.zeros_(model.weight)
        inputs, target = (torch.randn(64, generator=generator) for _ in range(2))
        values = (inputs * size).repeat(2, 1)
        targets = torch.stack([target, -target * (1 + apart)]) * 100
        worst = max(worst, length_of_sum(model, F.mse_loss, values, targets, 0.01))
    assert 0 < worst <= ROUNDING


@pytest.mark.parametrize("norm", [1e-2, 1e-4, 1e-6])
@pytest.mark.parametrize("each", [1, 2])
def test_gradients_whose_squares_are_zero_in_this_precision_have_a_norm_all_the_same(norm: float, each: int) -> None:
    model = nn.Linear(64, 64, bias=False)
    nn.init.zeros_(model.weight)
    values, targets = torch.full((each, 64), 1e18), torch.full((each, 64), 1e-22)
    assert length_of_sum(model, F.mse_loss, values, targets, norm) <= ROUNDING
    stack = nn.Sequential(nn.Linear(64, 64), nn.Flatten())
    nn.init.zeros_(stack[0].weight)
    nn.init.zeros_(stack[0].bias)
    assert length_of_sum(stack, F.mse_loss, values, targets, norm) <= ROUNDING


@pytest.mark.parametrize("norm", [1e-6, 1e-5, 1e-3])
@pytest.mark.parametrize("grown", [1.0, 1e3, 1e6])
def test_the_shipped_component_keeps_the_smallest_norm_that_a_plan_may_have(norm: float, grown: float) -> None:
    shipped = find_component("cardio-risk")
    model = load_model(shipped.folder, "angiography")
    with torch.no_grad():
        list(model.parameters())[-2].mul_(grown)
    for seed in range(10):
        values = torch.from_numpy(made_up("cardio-risk", "angiography", 1, seed)).float().repeat(4, 1)
        outcome = torch.tensor([0.0, 1.0, 1.0, 0.0])
        assert length_of_sum(model, loss_of(shipped.component), values, outcome, norm) <= ROUNDING


def test_rounding_up_costs_an_ordinary_patient_nothing_to_speak_of() -> None:
    for name in ("gru", "transformer", "linear on sequences", "conv1d", "embedding"):
        model = build(name, 1).float()
        generator = torch.Generator().manual_seed(3)
        values = torch.randn(3, STEPS, WIDTH, generator=generator)
        outcome = torch.tensor([0.0, 1.0, 1.0])
        assert length_of_sum(model, BCE, values, outcome, 1e-3) > 1 - 2e-3
