import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from vht_federate.privacy import gradients
from vht_federate.privacy.gradients import clipped_sum, contributions

BCE = nn.functional.binary_cross_entropy_with_logits


class Flat(nn.Module):
    """Two layers, logits [n]; float64 so that the comparison is sharp."""

    def __init__(self, inputs: int, hidden: int, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Linear(inputs, hidden), nn.Tanh(), nn.Linear(hidden, 1)).double()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x).squeeze(-1)


def one_patient_at_a_time(model, values, outcome, patient, clip) -> dict[str, torch.Tensor]:
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for who in sorted(set(patient.tolist())):
        rows = [i for i, p in enumerate(patient.tolist()) if p == who]
        mean = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for row in rows:
            model.zero_grad()
            BCE(model(values[row : row + 1]), outcome[row : row + 1]).backward()
            for name, p in model.named_parameters():
                mean[name] += p.grad / len(rows)
        norm = math.sqrt(sum(float((g**2).sum()) for g in mean.values()))
        if not math.isfinite(norm):
            continue
        for name in total:
            total[name] += mean[name] * min(1.0, clip / norm if norm else 1.0)
    return total


def batch(seed: int, sizes: list[int], inputs: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    records = sum(sizes)
    values = torch.from_numpy(rng.normal(size=(records, inputs)) * rng.choice([0.1, 1, 30]))
    outcome = torch.from_numpy(rng.integers(0, 2, records).astype(float))
    numbers = np.sort(rng.choice(10_000, size=len(sizes), replace=False))
    return values, outcome, torch.from_numpy(np.repeat(numbers, sizes))


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 2**31),
    st.lists(st.integers(1, 5), min_size=1, max_size=7),
    st.integers(1, 6),
    st.integers(1, 4),
    st.sampled_from([1e-3, 0.3, 1.0, 50.0]),
    st.sampled_from([1, 3, 1 << 20]),
)
def test_it_equals_clipping_one_patient_at_a_time(seed, sizes, inputs, hidden, clip, at_once) -> None:
    model = Flat(inputs, hidden, seed % 1000)
    values, outcome, patient = batch(seed, sizes, inputs)
    parameters = sum(p.numel() for p in model.parameters())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gradients, "_CELLS_AT_ONCE", at_once * parameters)
        sums = clipped_sum(model, BCE, values, outcome, patient, clip)
    expected = one_patient_at_a_time(model, values, outcome, patient, clip)
    for name, value in expected.items():
        assert sums[name].dtype == torch.float64
        torch.testing.assert_close(sums[name], value.detach(), rtol=1e-10, atol=1e-10)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.lists(st.integers(1, 4), min_size=1, max_size=5), st.sampled_from([0.01, 1.0, 7.0]))
def test_one_patient_more_moves_the_sum_by_at_most_the_clipping_norm(seed, sizes, clip) -> None:
    model = Flat(3, 2, 5)
    values, outcome, patient = batch(seed, sizes, 3)
    rng = np.random.default_rng(seed + 1)
    values[-sizes[-1] :] *= 10.0 ** rng.integers(0, 300)
    values[-1, 0] = rng.choice([np.nan, np.inf, -np.inf, 1e30, 1e300, 0.0])
    everyone = clipped_sum(model, BCE, values, outcome, patient, clip)
    rest = slice(0, len(patient) - sizes[-1])
    without = clipped_sum(model, BCE, values[rest], outcome[rest], patient[rest], clip)
    moved = math.sqrt(sum(float(((everyone[name] - without[name]) ** 2).sum()) for name in everyone))
    assert moved <= clip * (1 + 1e-9)


def test_ten_copies_of_a_record_weigh_as_much_as_one() -> None:
    model = Flat(3, 2, 0)
    values, outcome, patient = batch(3, [1], 3)
    once = clipped_sum(model, BCE, values, outcome, patient, 0.1)
    often = clipped_sum(model, BCE, values.repeat(10, 1), outcome.repeat(10), patient.repeat(10), 0.1)
    for name in once:
        torch.testing.assert_close(once[name], often[name], rtol=1e-12, atol=1e-12)


def test_an_empty_batch_gives_zeros_of_the_right_shapes() -> None:
    model = Flat(3, 2, 0)
    sums = clipped_sum(model, BCE, torch.zeros(0, 3).double(), torch.zeros(0), torch.zeros(0, dtype=torch.int64), 1.0)
    assert {name: value.shape for name, value in sums.items()} == {n: p.shape for n, p in model.named_parameters()}
    assert all((value == 0).all() for value in sums.values())


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_a_patient_with_one_poisoned_record_counts_as_nothing(poison: float) -> None:
    model = Flat(3, 2, 0)
    values, outcome, patient = batch(1, [2, 3, 1], 3)
    values[3, 1] = poison
    rest = [0, 1, 5]
    expected = clipped_sum(model, BCE, values[rest], outcome[rest], patient[rest], 1.0)
    sums = clipped_sum(model, BCE, values, outcome, patient, 1.0)
    for name in expected:
        torch.testing.assert_close(sums[name], expected[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "huge"), [(torch.float32, 1e30), (torch.float64, 1e30), (torch.float64, 1e300)])
def test_a_huge_gradient_is_clipped_not_lost(dtype: torch.dtype, huge: float) -> None:
    model = nn.Linear(2, 1, bias=False).to(dtype)
    nn.init.zeros_(model.weight)
    total = clipped_sum(
        model,
        lambda logits, y: (logits.squeeze(-1) * y).mean(),
        torch.tensor([[huge, huge]], dtype=dtype),
        torch.ones(1, dtype=dtype),
        torch.tensor([0]),
        2.0,
    )["weight"]
    torch.testing.assert_close(total, torch.full((1, 2), math.sqrt(2), dtype=torch.float64))


def test_the_largest_finite_gradients_have_a_finite_mean() -> None:
    top = torch.finfo(torch.float64).max
    averaged = contributions({"w": torch.full((4, 1), top, dtype=torch.float64)}, torch.tensor([0, 0, 0, 0]))
    assert torch.isfinite(averaged["w"]).all()


def test_float32_models_lose_nothing_in_the_summation() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    n = 200_000
    total = clipped_sum(
        model, lambda logits, y: (logits.squeeze(-1) * y).mean(), torch.full((n, 1), 0.1), torch.ones(n),
        torch.arange(n), 1.0,
    )["weight"]  # fmt: skip
    assert abs(float(total) - n * float(np.float32(0.1))) < 1e-6
