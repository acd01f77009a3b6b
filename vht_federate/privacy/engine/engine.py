"""The clipped sum over patients in one forward and one backward pass (book-keeping; Bu et al., ICML 2023).

The unit is the patient: the gradients of its records are averaged, the average is clipped once. What the sum is does
not depend on ``EngineOptions``, on micro-batches, or on which of three ways a patient takes: with others through the
recorded layers, alone by plain autograd, or by ``torch.func`` for models that the recorder cannot follow.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vht_federate.errors import InputError
from vht_federate.privacy.engine.clipping import Clipped, add, clip_one, sum_clipped
from vht_federate.privacy.engine.general import general_sum
from vht_federate.privacy.engine.grouping import MicroBatch, Order, micro_batches, ordered_patients
from vht_federate.privacy.engine.loss import Loss, output_gradients
from vht_federate.privacy.engine.options import EngineOptions
from vht_federate.privacy.engine.probe import Profile, bind_gradients, forward, probe
from vht_federate.privacy.engine.refusal import Unsupported, check_model, refusal, trained
from vht_federate.privacy.engine.single import patient_gradient
from vht_federate.privacy.engine.stack import Stack

__all__ = ["PerPatientEngine"]

_ALONE_AT_LEAST = 16  # records that one patient may always have in a micro-batch


class PerPatientEngine:
    """Per-patient gradients of ``model`` under ``loss``, which maps (outputs [n, ...], targets [n, ...]) to a mean.

    Raises ComponentError VHT-COMPONENT-GRADIENTS with a reason, at once or at the first batch, for a model that has no
    per-patient gradients: batch normalisation, buffers that remember inputs, layers that nothing here can follow.
    """

    def __init__(self, model: nn.Module, loss: Loss, options: EngineOptions | None = None) -> None:
        check_model(model)
        self.model = model
        self.loss = loss
        self.options = options or EngineOptions()
        self._profile: Profile | None = None
        self._stack: Stack | None = None
        self._why_general: str | None = None

    @property
    def why_general(self) -> str | None:
        """Why the general engine runs this model; None while the fast one does, or before the first batch."""
        return self._why_general

    def clipped_sum(
        self,
        inputs: Sequence[Tensor],
        targets: Tensor,
        patient: Tensor,
        patients: int,
        clipping_norm: float,
    ) -> dict[str, Tensor]:
        """Sum over patients of their clipped contributions, by name of trained parameter, in the parameter's type.

        ``inputs``: tensors [records, ...], the model's arguments. ``patient``: int64 [records], non-decreasing, in
        0..patients-1. A patient without records, and one with a coordinate that is not finite, contributes zero;
        nothing tells which or how many. L2 sensitivity to one patient with all records: ``clipping_norm``.
        """
        records = len(targets)
        order = ordered_patients(patient, records, patients)
        if any(len(value) != records for value in inputs) or not inputs:
            raise InputError("inputs and targets have one row per record", code="VHT-INPUT-RECORDS")
        if not 0.0 < clipping_norm < float("inf"):
            raise InputError("the clipping norm is positive and finite", code="VHT-INPUT-CLIPPING")
        parameters = trained(self.model)
        if not records:
            return {name: torch.zeros_like(value) for name, value in parameters.items()}
        if self._why_general is None:
            try:
                total = self._fast_sum(parameters, inputs, targets, order, clipping_norm)
            except Unsupported as reason:
                self._why_general = str(reason)
        if self._why_general is not None:
            total = general_sum(self.model, self.loss, inputs, targets, patient, clipping_norm)
        return {
            name: total[name].to(value.dtype) if name in total else torch.zeros_like(value)
            for name, value in parameters.items()
        }

    def _fast_sum(
        self,
        parameters: dict[str, nn.Parameter],
        inputs: Sequence[Tensor],
        targets: Tensor,
        order: Order,
        clipping_norm: float,
    ) -> dict[str, Tensor]:
        names = {id(value): name for name, value in parameters.items()}
        if self._profile is None:
            self._profile = probe(self.model, parameters, names, inputs)
            self._stack = Stack.of(self.model)
        at_once = self._records_at_once(self._profile)
        versions = [value._version for value in self._profile.buffers]
        total: dict[str, Tensor] = {}
        for batch in micro_batches(order, at_once, targets.device):
            add(total, self._batch_sum(parameters, names, inputs, targets, batch, clipping_norm, at_once))
        if versions != [value._version for value in self._profile.buffers]:
            raise refusal("the forward pass changed a buffer, which now holds what patients sent: discard this model")
        return total

    def _batch_sum(
        self,
        parameters: dict[str, nn.Parameter],
        names: dict[int, str],
        inputs: Sequence[Tensor],
        targets: Tensor,
        batch: MicroBatch,
        clipping_norm: float,
        at_once: int,
    ) -> dict[str, Tensor]:
        taken, labels = [batch.take(value) for value in inputs], batch.take(targets)
        if batch.large:
            gradient = patient_gradient(self.model, self.loss, parameters, taken, labels, at_once)
            return clip_one(gradient, clipping_norm) or {}
        clipped = self._clipped(names, taken, labels, batch, clipping_norm)
        if clipped.suspects is None:
            return clipped.total
        total: dict[str, Tensor] = {}
        parts = [batch.alone(at) for at in torch.nonzero(clipped.suspects).flatten().tolist()]
        if len(parts) < batch.patients:
            parts.append(batch.without(clipped.suspects))
        for part in parts:
            add(total, self._batch_sum(parameters, names, inputs, targets, part, clipping_norm, at_once))
        return total

    def _clipped(
        self,
        names: dict[int, str],
        inputs: Sequence[Tensor],
        targets: Tensor,
        batch: MicroBatch,
        clipping_norm: float,
    ) -> Clipped:
        if self._stack is not None and len(inputs) == 1:
            written_out = self._stack.clipped(
                self.loss, names, inputs[0], targets, batch, clipping_norm, self.options.gradient_bytes
            )
            if written_out is not None:
                return written_out
        outputs, tape = forward(self.model, names, inputs, len(targets))
        seeds = output_gradients(self.loss, outputs, targets, batch.share)
        uses = bind_gradients(outputs, tape, seeds, batch.patients, batch.each)
        if not uses:
            return Clipped({}, None)
        return sum_clipped(uses, batch.patients, clipping_norm, self.options.gradient_bytes)

    def _records_at_once(self, profile: Profile) -> int:
        bound = self.options.recurrent_bytes if profile.recurrent else self.options.activation_bytes
        return max(_ALONE_AT_LEAST, bound // profile.record_bytes)
