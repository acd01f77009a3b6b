"""The one thing that leaves the engine: a sum of clipped contributions with noise."""

from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from vht_federate.domain.plan import Precision
from vht_federate.privacy.engine.engine import PerPatientEngine
from vht_federate.privacy.engine.refusal import trained
from vht_federate.privacy.noise import NoiseSource
from vht_federate.privacy.release import Private, release_gaussian, release_gaussian_float32

__all__ = ["Batch", "noised_sum"]


@dataclass(frozen=True, repr=False)
class Batch:
    """Records of the sampled patients, as ``PerPatientEngine.clipped_sum`` takes them."""

    inputs: tuple[Tensor, ...]
    targets: Tensor
    patient: Tensor
    patients: int

    def arguments(self) -> tuple[tuple[Tensor, ...], Tensor, Tensor, int]:
        return self.inputs, self.targets, self.patient, self.patients


def noised_sum(
    engine: PerPatientEngine,
    batch: Private[Batch],
    clipping_norm: float,
    noise_multiplier: float,
    noise: NoiseSource,
    precision: Precision = "float64",
) -> dict[str, Tensor]:
    """Sum over patients of clipped contributions plus N(0, (noise_multiplier * clipping_norm)^2) per coordinate.

    By parameter name, on the parameter's device. Noise is drawn and added in ``precision``, and so is the result: in
    float64, a float32 model that takes its step drops the low-order bits of every released number.
    """
    parameters = trained(engine.model)

    def flat(held: Batch) -> ArrayLike:
        total = engine.clipped_sum(*held.arguments(), clipping_norm, parameters)
        return torch.cat([part.flatten() for part in total.values()]).numpy(force=True)

    private = batch.map(flat)
    release = release_gaussian_float32 if precision == "float32" else release_gaussian
    noised = torch.from_numpy(release(private, clipping_norm, noise_multiplier, noise))
    found, start = {}, 0
    for name, value in parameters.items():
        stop = start + value.numel()
        found[name] = noised[start:stop].view(value.shape).to(value.device)
        start = stop
    return found
