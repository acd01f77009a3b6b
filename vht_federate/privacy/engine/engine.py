"""The clipped sum over patients in one forward and one backward pass (book-keeping; Bu et al., ICML 2023).

The unit is the patient: the gradients of its records are averaged, the average is clipped once. What the sum is does
not depend on ``EngineOptions``, on micro-batches, or on which of three ways a patient takes: with others through the
recorded layers, alone by plain autograd, or by ``torch.func`` for models that the recorder cannot follow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
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
from vht_federate.privacy.tally import Tally

__all__ = ["EngineChoice", "PerPatientEngine"]

_ALONE_AT_LEAST = 16  # records that one patient may always have in a micro-batch


@dataclass(frozen=True)
class EngineChoice:
    """Which engine runs a model, and why it is not the fast one. Public: chosen on made-up records."""

    name: Literal["book-keeping", "torch.func"]
    why: str = ""


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
        self._choice: EngineChoice | None = None

    @property
    def choice(self) -> EngineChoice:
        """Raises InputError VHT-INPUT-ENGINE before ``prepare``."""
        if self._choice is None:
            raise InputError("the engine has not seen the shape of a record", code="VHT-INPUT-ENGINE")
        return self._choice

    def prepare(self, inputs: Sequence[Tensor]) -> None:
        """Choose, once, on made-up records of the shapes and types of ``inputs``. Raises ComponentError as above."""
        if self._choice is None:
            parameters = trained(self.model)
            names = {id(value): name for name, value in parameters.items()}
            try:
                self._profile = probe(self.model, parameters, names, inputs)
                self._stack = Stack.of(self.model)
                self._choice = EngineChoice("book-keeping")
            except Unsupported as reason:
                self._choice = EngineChoice("torch.func", str(reason))

    def clipped_sum(
        self,
        inputs: Sequence[Tensor],
        targets: Tensor,
        patient: Tensor,
        patients: int,
        clipping_norm: float,
        parameters: dict[str, nn.Parameter] | None = None,
        tally: Tally | None = None,
    ) -> dict[str, Tensor]:
        """Sum over patients of their clipped contributions, by name of trained parameter, in the parameter's type.

        ``inputs``: tensors [records, ...], the model's arguments. ``patient``: int64 [records], non-decreasing, in
        0..patients-1. A patient without records, and one with a coordinate that is not finite, contributes zero;
        nothing tells which or how many. L2 sensitivity to one patient with all records: ``clipping_norm``.
        ``parameters``: ``trained(model)``, where the caller has it at hand. ``tally`` is told of contributions.
        """
        records = len(targets)
        order = ordered_patients(patient, records, patients)
        if any(len(value) != records for value in inputs) or not inputs:
            raise InputError("inputs and targets have one row per record", code="VHT-INPUT-RECORDS")
        if not 0.0 < clipping_norm < float("inf"):
            raise InputError("the clipping norm is positive and finite", code="VHT-INPUT-CLIPPING")
        parameters = parameters or trained(self.model)
        if not records:
            return {name: torch.zeros_like(value) for name, value in parameters.items()}
        self.prepare(inputs)
        try:
            counted = None if tally is None else Tally()
            total = self._fast_sum(parameters, inputs, targets, order, clipping_norm, counted)
            if tally is not None and counted is not None:
                tally.add(counted.within, counted.seen)
        except Unsupported:  # also of a model that takes another way on real records; nobody is told
            total = general_sum(self.model, self.loss, inputs, targets, patient, clipping_norm, tally)
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
        tally: Tally | None,
    ) -> dict[str, Tensor]:
        if self._profile is None:
            raise Unsupported
        names = {id(value): name for name, value in parameters.items()}
        versions = [value._version for value in self._profile.buffers]
        run = _Run(parameters, names, clipping_norm, self._records_at_once(self._profile), tally)
        total = self._sum(run, inputs, targets, order)
        if versions != [value._version for value in self._profile.buffers]:
            raise refusal("the forward pass changed a buffer, which now holds what patients sent: discard this model")
        return total

    def _sum(self, run: "_Run", inputs: Sequence[Tensor], targets: Tensor, order: Order) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for batch in micro_batches(order, run.at_once):
            rows = batch.records
            taken, labels = [value[rows] for value in inputs], targets[rows]
            if batch.large:
                add(total, self._alone(run, taken, labels))
                continue
            clipped = self._clipped(run, taken, labels, batch)
            if clipped.suspects is None:
                add(total, clipped.total)
                if run.tally is not None:
                    clipped.tell(run.tally, batch.patients)
                continue
            suspects = clipped.suspects.numpy(force=True)
            for at in np.flatnonzero(suspects):
                own = slice(*(batch.first[at : at + 2] - rows.start).tolist())
                add(total, self._alone(run, [value[own] for value in taken], labels[own]))
            kept = np.flatnonzero(~np.repeat(suspects, np.diff(batch.first)))
            if len(kept):
                index = torch.from_numpy(kept).to(targets.device)
                add(total, self._sum(run, [value[index] for value in taken], labels[index], order[rows][kept]))
        return total

    def _alone(self, run: "_Run", inputs: Sequence[Tensor], targets: Tensor) -> dict[str, Tensor]:
        """One patient by plain autograd: exact where a norm overflowed, cheap where there are many records."""
        gradient = patient_gradient(self.model, self.loss, run.parameters, inputs, targets, run.at_once)
        return clip_one(gradient, run.clipping_norm, run.tally) or {}

    def _clipped(self, run: "_Run", inputs: Sequence[Tensor], targets: Tensor, batch: MicroBatch) -> Clipped:
        gradient_bytes = self.options.gradient_bytes
        if self._stack is not None and len(inputs) == 1:
            written_out = self._stack.clipped(
                self.loss, run.names, inputs[0], targets, batch, run.clipping_norm, gradient_bytes
            )
            if written_out is not None:
                return written_out
        outputs, tape = forward(self.model, run.names, inputs, len(targets))
        seeds = output_gradients(self.loss, outputs, targets, batch.share(targets.device))
        uses = bind_gradients(outputs, tape, seeds)
        return sum_clipped(uses, batch, run.clipping_norm, gradient_bytes) if uses else Clipped({}, None)

    def _records_at_once(self, profile: Profile) -> int:
        bound = self.options.recurrent_bytes if profile.recurrent else self.options.activation_bytes
        return max(_ALONE_AT_LEAST, bound // profile.record_bytes)


@dataclass(frozen=True)
class _Run:
    """What stays the same over one sum."""

    parameters: dict[str, nn.Parameter]
    names: dict[int, str]
    clipping_norm: float
    at_once: int
    tally: Tally | None
