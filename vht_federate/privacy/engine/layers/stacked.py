"""``torch.gru`` and ``torch.lstm`` as their modules call them: layers and directions one after the other."""

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from vht_federate.privacy.engine.layers.recurrent import GatesUse, GruLayer, LstmLayer, Stash
from vht_federate.privacy.engine.refusal import Unsupported
from vht_federate.privacy.engine.tape import Tape

__all__ = ["gru", "lstm"]

Weights = tuple[Tensor | None, ...]


def gru(tape: Tape, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Returns (outputs, last states [layers * directions, N, H])."""
    return _stacked(tape, _arguments(args, kwargs), cells=False)[:2]


def lstm(tape: Tape, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Returns (outputs, last states, last cells)."""
    return _stacked(tape, _arguments(args, kwargs), cells=True)


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    if kwargs or len(args) != 9:
        raise Unsupported("a recurrent layer whose arguments are given by name")
    if isinstance(args[2], Tensor):  # (values, sizes of the batch at each step, first states, ...)
        raise Unsupported("a packed sequence")
    return args


def _stacked(tape: Tape, args: tuple[Any, ...], cells: bool) -> tuple[Tensor, Tensor, Tensor]:
    inputs, initial, flat, biases, layers, dropout, training, both, batch_first = args
    tape.check_records(inputs, 0 if batch_first else 1)
    directions, per = 2 if both else 1, 4 if biases else 2
    if len(flat) != layers * directions * per:
        raise Unsupported("a recurrent layer with a projection")
    h0, c0 = initial if cells else (initial, None)
    sequence = inputs.transpose(0, 1) if batch_first else inputs
    states, last_cells = [], []
    for layer in range(layers):
        by_direction = []
        for direction in range(directions):
            at = layer * directions + direction
            weights = tuple(flat[at * per : (at + 1) * per]) + (None,) * (4 - per)
            layer_inputs = sequence.flip(0) if direction else sequence
            output, cell = _layer(tape, layer_inputs, h0[at], None if c0 is None else c0[at], weights)
            states.append(output[-1])
            last_cells.append(cell)
            by_direction.append(output.flip(0) if direction else output)
        sequence = by_direction[0] if directions == 1 else torch.cat(by_direction, dim=-1)
        if dropout and training and layer + 1 < layers:
            sequence = F.dropout(sequence, dropout)
    outputs = sequence.transpose(0, 1) if batch_first else sequence
    return outputs, torch.stack(states), torch.stack(last_cells)


def _layer(tape: Tape, inputs: Tensor, h0: Tensor, c0: Tensor | None, weights: Weights) -> tuple[Tensor, Tensor]:
    """One layer in one direction, [T, N, in] to [T, N, H], and its last cell (the last state for a GRU)."""
    names = [tape.name_of(weight) for weight in weights]
    stash = Stash()
    anchor = torch.zeros((), dtype=inputs.dtype, device=inputs.device, requires_grad=True)
    inputs = inputs.contiguous()
    detached = tuple(None if weight is None else weight.detach() for weight in weights)
    if c0 is None:
        outputs = GruLayer.apply(inputs, h0, anchor, stash, detached)
        cell = outputs[-1]
    else:
        outputs, cell = LstmLayer.apply(inputs, h0, c0, anchor, stash, detached)
    for to_states in (False, True):
        weight, bias = names[to_states], names[2 + to_states]
        matrix = detached[to_states]
        assert matrix is not None
        if weight or bias:
            rolled = to_states or c0 is not None
            tape.uses.append(GatesUse((weight, bias), matrix.shape, anchor, stash, to_states, rolled))
    tape.recurrent = True
    return outputs, cell
