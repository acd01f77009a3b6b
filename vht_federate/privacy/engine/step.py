"""The one thing that leaves the engine: a sum of clipped contributions with noise."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from vht_federate.domain.plan import Precision
from vht_federate.privacy.clipped_count import Tally
from vht_federate.privacy.engine.engine import PerPatientEngine
from vht_federate.privacy.engine.refusal import trained
from vht_federate.privacy.engine.slots import Laid, Slots
from vht_federate.privacy.noise import NoiseSource
from vht_federate.privacy.release import Private, release_gaussian, release_gaussian_float32

__all__ = ["Batch", "FixedBatch", "noised_sum", "noised_sum_and_count"]

AnyBatch = TypeVar("AnyBatch", "Batch", "FixedBatch", "Batch | FixedBatch")


@dataclass(frozen=True, repr=False)
class Batch:
    """Records of the sampled patients, as ``PerPatientEngine.clipped_sum`` takes them."""

    inputs: tuple[Tensor, ...]
    targets: Tensor
    patient: Tensor
    patients: int

    def clipped_sum(
        self,
        engine: PerPatientEngine,
        clipping_norm: float,
        parameters: dict[str, nn.Parameter],
        tally: Tally | None = None,
    ) -> dict[str, Tensor]:
        return engine.clipped_sum(
            self.inputs, self.targets, self.patient, self.patients, clipping_norm, parameters, tally
        )


@dataclass(frozen=True, repr=False)
class FixedBatch:
    """The same in fixed shapes: all records, a row of zeros after them, and which of them are ``laid`` in ``slots``.

    ``gathered``: makes the plain batch, for patients whose numbers must be looked at one by one.
    """

    inputs: tuple[Tensor, ...]
    targets: Tensor
    slots: Slots
    laid: Laid
    gathered: Callable[[], Batch]

    def clipped_sum(
        self,
        engine: PerPatientEngine,
        clipping_norm: float,
        parameters: dict[str, nn.Parameter],
        tally: Tally | None = None,
    ) -> dict[str, Tensor]:
        total = engine.slot_sum(self.inputs, self.targets, self.slots, self.laid, clipping_norm, parameters, tally)
        return self.gathered().clipped_sum(engine, clipping_norm, parameters, tally) if total is None else total


def noised_sum(
    engine: PerPatientEngine,
    batch: Private[AnyBatch],
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
    flat: Private[ArrayLike] = batch.map(lambda held: _flat(held.clipped_sum(engine, clipping_norm, parameters)))
    return _released(flat, parameters, clipping_norm, noise_multiplier, noise, precision)


def noised_sum_and_count(
    engine: PerPatientEngine,
    batch: Private[AnyBatch],
    clipping_norm: float,
    noise_multiplier: float,
    count_noise: float,
    noise: NoiseSource,
    precision: Precision = "float64",
) -> tuple[dict[str, Tensor], float]:
    """``noised_sum``, and a noised count of the same patients: half of those within the norm less those beyond it.

    The count's noise is N(0, count_noise^2). Together they are one Gaussian mechanism of multiplier m with
    1/m^2 = 1/noise_multiplier^2 + 1/(2 count_noise)^2 (Andrew et al. 2021, theorem 1): a patient moves the sum by the
    norm and the count by 1/2.
    """
    parameters = trained(engine.model)

    def both(held: AnyBatch) -> tuple[ArrayLike, float]:
        tally = Tally()
        flat = _flat(held.clipped_sum(engine, clipping_norm, parameters, tally))
        return flat, tally.centred

    private = batch.map(both)
    total = _released(private.map(lambda pair: pair[0]), parameters, clipping_norm, noise_multiplier, noise, precision)
    return total, float(release_gaussian(private.map(lambda pair: pair[1]), 0.5, 2.0 * count_noise, noise))


def _flat(total: dict[str, Tensor]) -> NDArray[Any]:
    together: NDArray[Any] = torch.cat([part.flatten() for part in total.values()]).numpy(force=True)
    return together


def _released(
    flat: Private[ArrayLike],
    parameters: dict[str, nn.Parameter],
    clipping_norm: float,
    noise_multiplier: float,
    noise: NoiseSource,
    precision: Precision,
) -> dict[str, Tensor]:
    release = release_gaussian_float32 if precision == "float32" else release_gaussian
    noised = torch.from_numpy(release(flat, clipping_norm, noise_multiplier, noise))
    tensors, start = {}, 0
    for name, value in parameters.items():
        stop = start + value.numel()
        tensors[name] = noised[start:stop].view(value.shape).to(value.device)
        start = stop
    return tensors
