"""The data that is hardest to hide: one direction of its own for each canary, and gradients that need clipping.

Imports torch.
"""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vht_federate.privacy.engine import Batch, FixedBatch
from vht_federate.privacy.engine.slots import Slots
from vht_federate.privacy.training import TrainingTensors

__all__ = ["WatchedTensors", "canary_loss", "canary_model", "canary_tensors"]

_LENGTH = 10.0  # of a canary's gradient, in clipping norms: without clipping it shows
_RECORDS = 3  # patients have 1.._RECORDS records: counting records instead of patients shows


class CanaryModel(torch.nn.Module):
    """A linear model with one input per canary. The only value of a record is the number of its canary.

    The gradient of a record by the weights is ``scale`` in its canary's place and zero elsewhere.
    """

    numbers: Tensor

    def __init__(self, canaries: int, scale: float) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(canaries, 1, bias=False)
        torch.nn.init.zeros_(self.linear.weight)
        self.register_buffer("numbers", torch.arange(canaries, dtype=torch.float32), persistent=False)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        inputs = torch.eq(x, self.numbers).to(torch.float32) * self.scale
        logits: Tensor = self.linear(inputs).squeeze(-1)
        return logits


def canary_loss(logits: Tensor, outcome: Tensor) -> Tensor:
    """Minus the mean logit, times the outcome: a gradient that does not depend on the weights."""
    return -(logits * outcome).mean()


class WatchedTensors(TrainingTensors):
    """Training tensors that tell ``watch`` which patients each step reads. For data that is made up only."""

    def __init__(
        self,
        values: NDArray[np.float32],
        patient: NDArray[np.int64],
        patients: int,
        watch: Callable[[NDArray[np.int64]], None],
    ) -> None:
        super().__init__(values, np.ones(len(values), np.float32), patient, patients)
        self._watch = watch

    def batch_of(self, chosen: NDArray[np.int64], slots: Slots | None) -> Batch | FixedBatch:
        self._watch(np.array(chosen))
        return super().batch_of(chosen, slots)


def canary_tensors(present: NDArray[np.bool_], watch: Callable[[NDArray[np.int64]], None]) -> WatchedTensors:
    """One patient for each canary that is ``present``, with one to three equal records."""
    numbers = np.flatnonzero(present)
    records = 1 + numbers % _RECORDS
    patient = np.repeat(np.arange(len(numbers)), records).astype(np.int64)
    values = np.repeat(numbers, records).astype(np.float32)[:, None]
    return WatchedTensors(values, patient, len(numbers), watch)


def canary_model(canaries: int, clipping_norm: float) -> CanaryModel:
    """The model for ``canaries`` whose gradients are ten clipping norms long."""
    return CanaryModel(canaries, _LENGTH * clipping_norm)
