"""Before the first patient: does the fast engine follow this model? Asked with made-up records, never with patients'.

Three records of noise go through the model; only the middle one gets a gradient. Its contribution must equal
autograd's own gradient, and the contributions of the others must be exactly zero: a model that mixes the records of a
batch, or keeps them elsewhere than in the first dimension, is found here. Outputs of records with missing values
(NaN) must be those of each record alone: a gap filled from other patients would be found nowhere else.

These are questions about the model, not about its numbers: they are asked of a copy in float64 at moderate weights,
where no processor's rounding can answer them, and once more at the weights that it has.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from vht_federate.privacy.engine.clipping import add
from vht_federate.privacy.engine.grouping import single_group
from vht_federate.privacy.engine.handlers import HANDLERS
from vht_federate.privacy.engine.layers.recurrent import GatesUse
from vht_federate.privacy.engine.model_copies import Replica, moderate
from vht_federate.privacy.engine.parameter_use import Use
from vht_federate.privacy.engine.record_mixing import check_apart
from vht_federate.privacy.engine.refusal import Unsupported, check_buffers_kept, names_of, refusal, trained
from vht_federate.privacy.engine.tape import Tape

__all__ = ["Profile", "bind_gradients", "forward", "made_up", "probe"]

_RECORDS = 3


@dataclass(frozen=True)
class Profile:
    """What the probe learned: memory of one record's activations, a recurrent layer or none, one record's output."""

    record_bytes: int
    recurrent: bool
    output: Tensor  # [1, ...], of a made-up record


def forward(model: nn.Module, names: dict[int, str], inputs: Sequence[Tensor], records: int) -> tuple[Tensor, Tape]:
    """The model's output, recorded. Raises Unsupported where the tape cannot follow."""
    tape = Tape(names, records, HANDLERS)
    with torch.enable_grad(), tape:
        outputs = model(*inputs)
    if not isinstance(outputs, Tensor) or outputs.shape[:1] != (records,):
        raise Unsupported("the output is not one tensor with a row per record")
    return outputs, tape


def bind_gradients(outputs: Tensor, tape: Tape, seeds: Tensor) -> list[Use]:
    """One backward pass for activations alone; the uses that the loss depends on, ready to answer."""
    if not tape.uses or not outputs.requires_grad:
        return []
    edges: Sequence[Any] = [use.edge for use in tape.uses]
    return _bound(tape, torch.autograd.grad(outputs, edges, seeds, allow_unused=True))


def _bound(tape: Tape, gradients: Sequence[Tensor | None]) -> list[Use]:
    if not all(use.intact for use in tape.uses):
        raise Unsupported("a layer's input is changed in place after the layer")
    bound = []
    for use, gradient in zip(tape.uses, gradients, strict=True):
        if gradient is not None:
            use.bind(gradient)
            bound.append(use)
    return bound


def probe(
    model: nn.Module, parameters: dict[str, nn.Parameter], names: dict[int, str], inputs: Sequence[Tensor]
) -> Profile:
    """Raise Unsupported where the fast engine would be wrong, ComponentError where the model keeps what it sees."""
    records = [made_up(value) for value in inputs]
    before = {name: value.clone() for name, value in model.named_buffers()}
    try:
        outputs, tape = forward(model, names, records, _RECORDS)
    finally:
        check_buffers_kept(model, before)
    if not outputs.requires_grad:
        raise Unsupported("the output does not depend on a trained parameter")
    uses, _ = _of_middle_record(outputs, tape, list(parameters.values()))
    if any(bool((_written(use)[[0, 2]].abs() > 0).any()) for use in uses):  # NaN, of weights beyond all bounds, is not
        raise Unsupported("records of a batch are mixed")
    own = Replica.of(model, records)
    typical = own.at(moderate)
    _check_gradients(typical)
    check_apart(own, typical)
    record_bytes = sum(use.bytes_held() for use in tape.uses) // _RECORDS
    return Profile(max(1, record_bytes), tape.recurrent, outputs[:1].detach())


def _check_gradients(typical: Replica) -> None:
    """Raise Unsupported unless the middle record's gradient is autograd's own, and that of the others exactly zero."""
    parameters = trained(typical.model)
    outputs, tape = forward(typical.model, names_of(parameters), typical.inputs, _RECORDS)
    uses, expected = _of_middle_record(outputs, tape, list(parameters.values()))
    gradients: dict[str, Tensor] = {}
    for use in uses:
        flat = _written(use)
        if bool((flat[[0, 2]] != 0).any()):
            raise Unsupported("records of a batch are mixed")
        if not isinstance(use, GatesUse):  # their parameters reach no other function: the tape has seen to it
            add(gradients, use.read(flat[1]))
    for name, reference in zip(parameters, expected, strict=True):
        if reference is not None and not _close(gradients.get(name), reference):
            raise Unsupported("a parameter's gradient is not where the engine looks")


def _written(use: Use) -> Tensor:
    """Each made-up record's gradient, [records, floats]."""
    flat = use.like().new_empty((_RECORDS, use.floats()))
    use.write(single_group(_RECORDS), flat)
    return flat


def _of_middle_record(
    outputs: Tensor, tape: Tape, wanted: list[nn.Parameter]
) -> tuple[list[Use], Sequence[Tensor | None]]:
    """The uses, and autograd's gradients of the parameters; ComponentError where it has none to give."""
    seeds = torch.zeros_like(outputs)
    seeds[1] = _noise(outputs.shape[1:], outputs)
    autograd_inputs: Sequence[Any] = [*(use.edge for use in tape.uses), *wanted]
    try:
        gradients = torch.autograd.grad(outputs, autograd_inputs, seeds, allow_unused=True)
    except RuntimeError:
        raise refusal("autograd itself cannot differentiate this model", "look for changes in place") from None
    uses = _bound(tape, gradients[: len(tape.uses)])
    return uses, gradients[len(tape.uses) :]


def made_up(value: Tensor) -> Tensor:
    """Three records of the shape and type of those of ``value``: noise, or the first category."""
    shape = (_RECORDS, *value.shape[1:])
    return _noise(shape, value) if value.is_floating_point() else value.new_zeros(shape)


def _noise(shape: Sequence[int], like: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(20)
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float64).to(like)


def _close(gradient: Tensor | None, reference: Tensor) -> bool:
    if gradient is None:
        return not bool(reference.any())
    largest = reference.abs().max().clamp_min(gradient.abs().max())
    precision = torch.finfo(reference.dtype).eps ** 0.5
    return bool(torch.isfinite(largest)) and bool((gradient - reference).abs().max() <= precision * largest)
