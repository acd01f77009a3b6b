"""One round of patient-level DP-SGD at one node, exactly as the plan says (Abadi et al. 2016, patients as the unit).

Imports torch. Nothing leaves this module but weights to which the planned noise was added.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vht_federate.domain.plan import TrainingPlan
from vht_federate.errors import WireError
from vht_federate.privacy.engine import (
    Batch,
    FixedBatch,
    PerPatientEngine,
    noised_sum,
    noised_sum_and_count,
    trained,
)
from vht_federate.privacy.engine.slots import Slots
from vht_federate.privacy.noise import NoiseSource
from vht_federate.privacy.release import Private, release_gaussian
from vht_federate.privacy.truncation import TruncatedPoisson

__all__ = ["Trained", "TrainingTensors", "load_weights", "noised_count", "train_round"]

Weights = dict[str, NDArray[np.float32]]
FARTHEST = 1e3  # an adaptive norm stays within this factor of where the plan starts it


@dataclass(frozen=True)
class Trained:
    """What a round leaves: weights, and the clipping norm that the next round starts with. Both are public."""

    weights: Weights
    clipping_norm: float


class TrainingTensors:
    """Training patients on the device, patient-major.

    ``first[p]:first[p + 1]`` are the records of patient ``p``, ``sizes[p]`` of them. A patient without records is
    sampled like the others and contributes zero.
    """

    def __init__(
        self,
        values: NDArray[np.float32],
        outcome: NDArray[np.float32],
        patient: NDArray[np.int64],
        patients: int,
        device: str = "cpu",
    ) -> None:
        self.values = torch.from_numpy(np.ascontiguousarray(values)).to(device)
        self.outcome = torch.from_numpy(np.ascontiguousarray(outcome)).to(device)
        self.patients = patients
        self.first = np.searchsorted(patient, np.arange(patients + 1))
        self.sizes = np.diff(self.first)
        self.device = device
        self._padded: tuple[Tensor, Tensor] | None = None

    def __repr__(self) -> str:
        return "TrainingTensors(redacted)"

    def records_of(self, chosen: NDArray[np.int64]) -> Batch:
        """The records of ``chosen`` patients (ascending)."""
        sizes = self.first[chosen + 1] - self.first[chosen]
        patient = np.repeat(chosen, sizes)
        within = np.arange(len(patient)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        rows = torch.from_numpy(np.repeat(self.first[chosen], sizes) + within).to(self.device)
        return Batch((self.values[rows],), self.outcome[rows], torch.from_numpy(patient), self.patients)

    def batch_of(self, chosen: NDArray[np.int64], slots: Slots | None) -> Batch | FixedBatch:
        """The same, laid out in ``slots`` where there are any."""
        if slots is None:
            return self.records_of(chosen)
        if self._padded is None:
            self._padded = _with_zeros(self.values), _with_zeros(self.outcome)
        values, outcome = self._padded
        return FixedBatch((values,), outcome, slots, slots.lay(self.first, chosen), lambda: self.records_of(chosen))


def noised_count(data: Private[TrainingTensors], plan: TrainingPlan, noise: NoiseSource) -> float:
    """The number of training patients with N(0, count_noise_multiplier^2) noise, at least 1."""
    count = release_gaussian(
        data.map(lambda tensors: np.array(tensors.patients)), 1.0, plan.count_noise_multiplier, noise
    )
    return max(1.0, float(count))


def load_weights(model: torch.nn.Module, weights: Mapping[str, NDArray[np.float32]]) -> None:
    """Set the model's parameters to public ``weights``.

    Raises WireError VHT-WIRE-WEIGHTS where names or shapes differ from the model's, or a value is not finite.
    """
    parameters = dict(model.named_parameters())
    fits = set(weights) == set(parameters) and all(
        weights[name].shape == tuple(value.shape) and np.isfinite(weights[name]).all()
        for name, value in parameters.items()
    )
    if not fits:
        raise WireError(
            "the weights do not fit this component: names, shapes, or a value that is not finite",
            code="VHT-WIRE-WEIGHTS",
            hint="the coordinator must build its weights from the component and profile of the study",
        )
    with torch.no_grad():
        for name, value in parameters.items():
            value.copy_(torch.from_numpy(np.array(weights[name], dtype=np.float32)))


def train_round(
    engine: PerPatientEngine,
    data: Private[TrainingTensors],
    patients_noised: float,
    plan: TrainingPlan,
    noise: NoiseSource,
    clipping_norm: float | None = None,
) -> Trained:
    """``plan.local_steps`` private steps from the present weights of the engine's model, which keeps the new ones.

    Each step: Poisson sample of patients (truncated where the plan has a ``batch_limit``), one clipped contribution per
    patient, Gaussian noise, division by the *expected* batch ``sampling_rate * patients_noised`` (public), then
    momentum, weight decay and the step, which touch public values only. Momentum starts at zero in each round: weights
    are all that travels. ``clipping_norm``: where an adaptive one was left by the round before; None in the first. The
    engine makes its choice before noise is asked for: a model that no engine can follow is refused before the round has
    begun.
    """
    data.map(lambda tensors: engine.prepare((tensors.values,), tensors.outcome))
    parameters = trained(engine.model)
    expected_batch = plan.sampling_rate * max(1.0, patients_noised)
    velocity = {name: torch.zeros_like(value, dtype=torch.float64) for name, value in parameters.items()}
    norm = plan.clipping_norm if clipping_norm is None else clipping_norm
    for _ in range(plan.local_steps):
        sampled = data.map(lambda tensors: _sampled(engine, tensors, plan, noise))
        gradient, norm = _released(engine, sampled, plan, norm, expected_batch, noise)
        with torch.no_grad():
            for name, value in parameters.items():
                step = gradient[name].double() / expected_batch + plan.weight_decay * value.double()
                velocity[name] = plan.momentum * velocity[name] + step
                value.sub_((plan.learning_rate * velocity[name]).to(value.dtype))
    everything = engine.model.named_parameters()
    return Trained({name: value.detach().cpu().numpy().astype(np.float32) for name, value in everything}, norm)


def _sampled(
    engine: PerPatientEngine, tensors: TrainingTensors, plan: TrainingPlan, noise: NoiseSource
) -> Batch | FixedBatch:
    """A step's patients: a Poisson sample, truncated where the plan bounds it."""
    limit = plan.batch_limit
    if limit is None:
        chosen = noise.poisson_sample(tensors.patients, plan.sampling_rate)
    else:
        chosen = TruncatedPoisson(plan.sampling_rate, limit.patients, limit.population).sample(tensors.patients, noise)
    expected, bound = plan.sampling_rate * tensors.patients, None if limit is None else limit.patients
    return tensors.batch_of(chosen, engine.slots(tensors.sizes, expected, bound, torch.device(tensors.device).type))


def _with_zeros(values: Tensor) -> Tensor:
    """[records, ...] with one more, of zeros, at the end."""
    return torch.cat([values, values.new_zeros((1, *values.shape[1:]))])


def _released(
    engine: PerPatientEngine,
    sampled: Private[Batch | FixedBatch],
    plan: TrainingPlan,
    norm: float,
    expected_batch: float,
    noise: NoiseSource,
) -> tuple[dict[str, Tensor], float]:
    """Noised sum of clipped contributions, one release over all coordinates together; and the next clipping norm."""
    multiplier, count_noise, precision = plan.sum_noise_multiplier, plan.count_noise, plan.noise_precision
    if plan.adaptive_clipping is None or count_noise is None:
        return noised_sum(engine, sampled, norm, multiplier, noise, precision), norm
    total, centred = noised_sum_and_count(engine, sampled, norm, multiplier, count_noise, noise, precision)
    within = min(1.0, max(0.0, 0.5 + centred / expected_batch))
    moved = norm * math.exp(-plan.adaptive_clipping.learning_rate * (within - plan.adaptive_clipping.quantile))
    return total, min(max(moved, plan.clipping_norm / FARTHEST), plan.clipping_norm * FARTHEST)
