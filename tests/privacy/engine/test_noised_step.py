"""The noised sum: what leaves the engine."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from kit.models import STEPS, WIDTH, build

from vht_federate.privacy.engine import Batch, PerPatientEngine, noised_sum
from vht_federate.privacy.noise import SecureNoise
from vht_federate.privacy.release import Private
from vht_federate.testing import SeededNoise

BCE = F.binary_cross_entropy_with_logits


def batch(records: int, dtype: torch.dtype) -> Batch:
    values = torch.randn(records, STEPS, WIDTH, generator=torch.Generator().manual_seed(3)).to(dtype)
    return Batch((values,), torch.ones(records, dtype=dtype), torch.arange(records), records)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_without_noise_it_is_the_clipped_sum_in_the_parameters_shapes_and_the_precision_asked_for(
    dtype: torch.dtype,
) -> None:
    model, sample = build("transformer").to(dtype), batch(5, dtype)
    engine = PerPatientEngine(model, BCE)
    precision = "float32" if dtype == torch.float32 else "float64"
    for noise_precision in {"float64", precision}:
        noised = noised_sum(engine, Private(sample), 0.5, 1.0, SeededNoise(1, scale=0.0), noise_precision)
        expected = engine.clipped_sum(sample.inputs, sample.targets, sample.patient, sample.patients, 0.5)
        assert {name: value.shape for name, value in model.named_parameters()} == {
            name: value.shape for name, value in noised.items()
        }
        assert {value.dtype for value in noised.values()} == {getattr(torch, noise_precision)}
        assert all(torch.equal(noised[name], value.to(noised[name])) for name, value in expected.items())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("records", [0, 4])
def test_noise_has_the_planned_scale_and_covers_an_empty_batch(records: int, dtype: torch.dtype) -> None:
    model, sample = build("linear").to(dtype), batch(records, dtype)
    engine, clipping_norm, multiplier = PerPatientEngine(model, BCE), 1e-6, 3e6
    noise = np.concatenate(
        [
            torch.cat([part.flatten() for part in noised.values()]).numpy()
            for noised in (
                noised_sum(engine, Private(sample), clipping_norm, multiplier, SecureNoise(), str(dtype)[6:])
                for _ in range(40)
            )
        ]
    )
    assert len(np.unique(noise)) > 0.99 * len(noise)  # float32 has few enough values for two to meet
    assert abs(noise.std() / 3.0 - 1.0) < 5.0 / math.sqrt(2 * len(noise))


def test_a_batch_shows_nothing_when_printed() -> None:
    assert "tensor" not in repr(batch(2, torch.float32))
