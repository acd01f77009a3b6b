"""The clipped sum over patients in one forward and one backward pass (book-keeping; Bu et al., ICML 2023).

The unit is the patient: the gradients of its records are averaged, the average is clipped once. What the sum is does
not depend, but for rounding, on ``EngineOptions``, on micro-batches, or on which of three ways a patient takes: with
others through the recorded layers, by ``torch.func`` for models that the recorder cannot follow, or alone by plain
autograd, also for models that neither follows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vht_federate.errors import ComponentError, InputError
from vht_federate.privacy.clipped_count import Tally
from vht_federate.privacy.engine.clipping import Clipped, add, clip_one, sum_clipped
from vht_federate.privacy.engine.engine_choice import EngineChoice, Prepared, prepared
from vht_federate.privacy.engine.general import general_sum
from vht_federate.privacy.engine.grouping import Order, Patients, micro_batches, ordered_patients
from vht_federate.privacy.engine.loss import Loss, OneByOne, output_gradients
from vht_federate.privacy.engine.one_patient import patient_gradient
from vht_federate.privacy.engine.options import EngineOptions
from vht_federate.privacy.engine.patient_records import PatientRecords
from vht_federate.privacy.engine.probe import Profile, bind_gradients, forward
from vht_federate.privacy.engine.program import Program
from vht_federate.privacy.engine.record_by_record import autograd_sum
from vht_federate.privacy.engine.refusal import Unsupported, check_model, names_of, refusal, trained
from vht_federate.privacy.engine.slots import Laid, Slots, slots_for

__all__ = ["EngineChoice", "PerPatientEngine"]

_ALONE_AT_LEAST = 16  # records that one patient may always have in a micro-batch


class PerPatientEngine:
    """Per-patient gradients of ``model`` under ``loss``, which maps (outputs [n, ...], targets [n, ...]) to a mean.

    Raises ComponentError VHT-COMPONENT-GRADIENTS with a reason, at once or at the first batch, for a model that has no
    per-patient gradients: batch normalisation, state that remembers inputs, a loss that is the same for any output.
    """

    def __init__(self, model: nn.Module, loss: Loss, options: EngineOptions | None = None) -> None:
        check_model(model)
        self.model = model
        self.loss = loss
        self.options = options or EngineOptions()
        self._prepared: Prepared | None = None
        self._program: Program | None = None
        self._loose = False  # no program can be made of this model

    @property
    def choice(self) -> EngineChoice:
        """Raises InputError VHT-INPUT-ENGINE before ``prepare``."""
        return self._ready.choice

    @property
    def _ready(self) -> Prepared:
        if self._prepared is None:
            raise InputError("the engine has not seen the shape of a record", code="VHT-INPUT-ENGINE")
        return self._prepared

    def prepare(self, inputs: Sequence[Tensor], targets: Tensor) -> None:
        """Choose, once, on made-up records of the shapes and types of these. Raises ComponentError as above."""
        if self._prepared is None:
            self._prepared = prepared(self.model, self.loss, inputs, targets)

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
        That bound holds for any numbers. Equality with the definition holds where the definition is well conditioned: a
        record far out of any clinical range can leave a gradient to the order in which a processor adds, and then its
        patient's contribution is within the norm, may differ between ways of batching, and costs nobody else anything.
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
        self.prepare(inputs, targets)
        total = self._guarded(PatientRecords(inputs, targets, order), clipping_norm, parameters, tally)
        return {
            name: total[name].to(value.dtype) if name in total else torch.zeros_like(value)
            for name, value in parameters.items()
        }

    def _recorded(
        self, inputs: Sequence[Tensor], targets: Tensor, slots: Slots, parameters: dict[str, nn.Parameter]
    ) -> Program | None:
        """Tried on empty slots. None, and no slots from now on, where a model fails on them or cannot be recorded."""
        versions = self._buffer_versions()
        try:
            clip = partial(self._clipped, names_of(parameters))
            program = Program(clip, parameters, inputs, targets, slots, self.options.graphs)
            program.run(slots.empty(len(targets) - 1), 1.0)
        except (ComponentError, torch.OutOfMemoryError):
            raise
        except Exception:
            self._loose = True
            return None
        self._check_buffers(versions)
        return program

    def _guarded(
        self, part: PatientRecords, clipping_norm: float, parameters: dict[str, nn.Parameter], tally: Tally | None
    ) -> dict[str, Tensor]:
        """A component may fail on one patient's numbers. Whether it does must not show: that patient counts as zero."""
        try:
            return self._sum_of(part, clipping_norm, parameters, tally)
        except (ComponentError, torch.OutOfMemoryError):
            raise
        except Exception:
            total: dict[str, Tensor] = {}
            for patient_part in part.apart():
                if len(patient_part.order) < len(part.order):
                    add(total, self._guarded(patient_part, clipping_norm, parameters, tally))
            return total

    def _sum_of(
        self, part: PatientRecords, clipping_norm: float, parameters: dict[str, nn.Parameter], tally: Tally | None
    ) -> dict[str, Tensor]:
        """By the engine that was chosen; record by record where real records take another way. Nobody is told."""
        ways = {"book-keeping": self._fast_sum, "torch.func": self._general_sum}
        way, counted = ways.get(self.choice.name, self._autograd_sum), None if tally is None else Tally()
        versions = self._buffer_versions()
        try:
            total = way(part, clipping_norm, parameters, counted)
        except (ComponentError, torch.OutOfMemoryError):
            raise
        except Exception as failure:
            if way == self._autograd_sum or not (isinstance(failure, Unsupported) or way == self._general_sum):
                raise
            counted = None if tally is None else Tally()
            total = self._autograd_sum(part, clipping_norm, parameters, counted)
        finally:
            self._check_buffers(versions)
        if tally is not None and counted is not None:
            tally.add(counted.within, counted.seen)
        return total

    def _general_sum(
        self, part: PatientRecords, clipping_norm: float, _: dict[str, nn.Parameter], tally: Tally | None
    ) -> dict[str, Tensor]:
        patient = torch.from_numpy(part.order)
        return general_sum(self.model, self._ready.loss, part.inputs, part.targets, patient, clipping_norm, tally)

    def _autograd_sum(
        self, part: PatientRecords, clipping_norm: float, parameters: dict[str, nn.Parameter], tally: Tally | None
    ) -> dict[str, Tensor]:
        return autograd_sum(self.model, self._ready.loss, parameters, part, clipping_norm, tally)

    def slots(self, sizes: NDArray[np.int64], expected: float, bound: int | None, device: str) -> Slots | None:
        """How to lay out batches of about ``expected`` patients, at most ``bound``, in fixed shapes; None: not at all.

        ``sizes`` [patients]: records of each. After ``prepare``; nothing but speed depends on the answer.
        """
        profile = self._prepared.profile if self._prepared else None
        if profile is None or self._loose or not self.options.fixes_shapes_on(device):
            return None
        if isinstance(self._ready.loss, OneByOne):  # it looks at numbers, which a recorded program must not
            return None
        return slots_for(sizes, expected, bound, self._records_at_once(profile))

    def slot_sum(
        self,
        inputs: Sequence[Tensor],
        targets: Tensor,
        slots: Slots,
        laid: Laid,
        clipping_norm: float,
        parameters: dict[str, nn.Parameter],
        tally: Tally | None = None,
    ) -> dict[str, Tensor] | None:
        """``clipped_sum`` of patients ``laid`` out in ``slots``, whose records are rows of ``inputs`` and ``targets``.

        The last row holds zeros. None where patients must be looked at one by one, because a number is not finite or
        the model fails on some: the caller asks ``clipped_sum``. ``inputs``, ``targets`` and parameters stay in place
        between calls.
        """
        if self._program is None or not self._program.fits(inputs, targets, slots):
            self._program = self._recorded(inputs, targets, slots, parameters)
        if self._program is None:
            return None
        try:
            result = self._program.run(laid, clipping_norm)
        except (ComponentError, torch.OutOfMemoryError):
            raise
        except Exception:
            return None
        if not result.finite:
            return None
        if tally is not None:
            tally.add(result.within, result.seen)
        return result.total

    def _fast_sum(
        self, part: PatientRecords, clipping_norm: float, parameters: dict[str, nn.Parameter], tally: Tally | None
    ) -> dict[str, Tensor]:
        profile = self._ready.profile
        if profile is None:
            raise Unsupported
        run = _Run(parameters, names_of(parameters), clipping_norm, self._records_at_once(profile), tally)
        return self._sum(run, part.inputs, part.targets, part.order)

    def _buffer_versions(self) -> list[int]:
        return [value._version for value in self._ready.buffers]

    def _check_buffers(self, versions: list[int]) -> None:
        if versions != self._buffer_versions():
            raise refusal("the forward pass changed a buffer, which now holds what patients sent: discard this model")

    def _sum(self, run: "_Run", inputs: Sequence[Tensor], targets: Tensor, order: Order) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for batch in micro_batches(order, run.at_once):
            rows = batch.records
            taken, labels = [value[rows] for value in inputs], targets[rows]
            if batch.large:
                add(total, self._alone(run, taken, labels))
                continue
            clipped = self._clipped(run.names, run.clipping_norm, taken, labels, batch)
            suspects = ~clipped.finite.numpy(force=True)
            if not suspects.any():
                add(total, clipped.total)
                if run.tally is not None:
                    run.tally.add(int(clipped.within.sum()), batch.patients)
                continue
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
        gradient = patient_gradient(self.model, self._ready.loss, run.parameters, inputs, targets, run.at_once)
        return clip_one(gradient, run.clipping_norm, run.tally) or {}

    def _clipped(
        self,
        names: dict[int, str],
        clipping_norm: float | Tensor,
        inputs: Sequence[Tensor],
        targets: Tensor,
        batch: Patients,
    ) -> Clipped:
        """Of one micro-batch. Looks at no number, so that it can be recorded and replayed."""
        gradient_bytes, loss, stack = self.options.gradient_bytes, self._ready.loss, self._ready.stack
        if stack is not None and len(inputs) == 1:
            written_out = stack.clipped(loss, names, inputs[0], targets, batch, clipping_norm, gradient_bytes)
            if written_out is not None:
                return written_out
        outputs, tape = forward(self.model, names, inputs, len(targets))
        seeds = output_gradients(loss, outputs, targets, batch.share(targets.device))
        uses = bind_gradients(outputs, tape, seeds)
        if not uses:
            return Clipped.nothing(seeds, batch.patients)
        return sum_clipped(uses, batch, clipping_norm, gradient_bytes)

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
