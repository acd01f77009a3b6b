"""The one thing that leaves the engine: a sum of clipped contributions with noise."""

from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor

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


def noised_sum(
    engine: PerPatientEngine,
    batch: Private[Batch],
    clipping_norm: float,
    noise_multiplier: float,
    noise: NoiseSource,
) -> dict[str, Tensor]:
    """Sum over patients of clipped contributions plus N(0, (noise_multiplier * clipping_norm)^2) per coordinate.

    By parameter name, on the parameter's device, in its type: noise of a float32 model is drawn and added in float32.
    """
    parameters = trained(engine.model)
    single = all(value.dtype == torch.float32 for value in parameters.values())

    def flat(held: Batch) -> ArrayLike:
        total = engine.clipped_sum(held.inputs, held.targets, held.patient, held.patients, clipping_norm)
        return torch.cat([part.flatten() for part in total.values()]).numpy(force=True)

    private = batch.map(flat)
    release = release_gaussian_float32 if single else release_gaussian
    noised = torch.from_numpy(release(private, clipping_norm, noise_multiplier, noise))
    parts = noised.split_with_sizes([value.numel() for value in parameters.values()])
    return {
        name: part.view(value.shape).to(value.device, value.dtype)
        for (name, value), part in zip(parameters.items(), parts, strict=True)
    }
