"""GRU and LSTM, one layer and direction at a time, with a backward pass that keeps every gate's gradient.

Time-major [T, N, ...]. The recurrence touches only what depends on the step before; everything else is done for all
steps at once. Rows of ``weight_hh`` are rolled by one block, to (n, r, z) and (o, i, f, g), so that the gates that
share an operation lie side by side.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vht_federate.privacy.engine.grouping import Group
from vht_federate.privacy.engine.layers.matrix import MatrixUse

__all__ = ["GatesUse", "GruLayer", "LstmLayer", "Stash"]

Weights = tuple[Tensor | None, ...]  # w_ih, w_hh, b_ih, b_hh


class Stash:
    """What a layer keeps for its two uses: inputs and gate gradients, [T, N, ...]; ``None`` before backward."""

    def __init__(self) -> None:
        self.inputs: Tensor | None = None
        self.states: Tensor | None = None
        self.gates_inputs: Tensor | None = None
        self.gates_states: Tensor | None = None


def _halves(weights: Weights) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    w_ih, w_hh, b_ih, b_hh = weights
    assert w_ih is not None
    assert w_hh is not None
    return w_ih, w_hh, b_ih, b_hh


def _project(inputs: Tensor, weight: Tensor, bias: Tensor | None, into: Tensor) -> None:
    """``into`` [T, N, out] = inputs [T, N, in] times weight [out, in] plus bias; ``into`` may be a block of columns."""
    flat, rows = into.view(-1, into.shape[-1]), inputs.reshape(-1, inputs.shape[-1])
    if bias is None:
        torch.mm(rows, weight.T, out=flat)
    else:
        torch.addmm(bias, rows, weight.T, out=flat)


def _unit(like: Tensor) -> Tensor:
    return torch.ones((), dtype=like.dtype, device=like.device)


class GruLayer(torch.autograd.Function):
    """(inputs, h0, anchor, stash, weights) -> states [T, N, H]. Cho et al. 2014, in torch's form:

    r, z = sigmoid(W x + U h); n = tanh(W x + r * (U h)); h' = n + z * (h - n).

    One buffer [T, N, 4H] holds (U_n h, r, z, n) on the way forward and their gradients after the way back.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, h0: Tensor, _anchor: Tensor, stash: Stash, weights: Weights) -> Tensor:
        w_ih, w_hh, b_ih, b_hh = _halves(weights)
        steps, records, size = inputs.shape[0], inputs.shape[1], w_hh.shape[1]
        book = inputs.new_empty(steps, records, 4 * size)
        bias = b_ih
        if b_ih is not None and b_hh is not None:
            bias = torch.cat([b_ih[: 2 * size] + b_hh[: 2 * size], b_ih[2 * size :]])
        book[..., :size] = 0.0 if b_hh is None else b_hh[2 * size :]
        _project(inputs, w_ih, bias, book[..., size:])
        states = inputs.new_empty(steps + 1, records, size)
        states[0] = h0
        w_hh = torch.roll(w_hh, size, 0)
        transposed = w_hh.T
        for step, (before, after) in enumerate(pairwise(states.unbind())):
            row = book[step]
            row[:, : 3 * size].addmm_(before, transposed)
            row[:, size : 3 * size].sigmoid_()
            hidden, reset, update, new = torch.split(row, size, dim=1)
            new.addcmul_(reset, hidden).tanh_()
            torch.lerp(new, before, update, out=after)
        stash.inputs, stash.states = inputs.detach(), states[:-1]
        ctx.kept, ctx.stash = (book, states, w_ih, w_hh), stash
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        book, states, w_ih, w_hh = ctx.kept
        ctx.kept = None
        steps, size = len(book), book.shape[2] // 4
        carry, unit = grad[-1].contiguous(), _unit(book)
        to_new, to_update, to_hidden, to_reset = (torch.empty_like(carry) for _ in range(4))
        for step in range(steps - 1, -1, -1):
            hidden, reset, update, new = torch.split(book[step], size, dim=1)
            torch.addcmul(unit, new, new, value=-1, out=to_new)
            to_new.addcmul_(to_new, update, value=-1)
            torch.sub(states[step], new, out=to_update).mul_(update)
            to_update.addcmul_(to_update, update, value=-1)
            torch.mul(to_new, reset, out=to_hidden)
            torch.mul(to_hidden, hidden, out=to_reset)
            to_reset.addcmul_(to_reset, reset, value=-1)
            before = torch.mul(carry, update)
            if step:
                before += grad[step - 1]
            for factor, place in ((to_hidden, hidden), (to_reset, reset), (to_update, update), (to_new, new)):
                torch.mul(factor, carry, out=place)
            carry = before.addmm_(book[step, :, : 3 * size], w_hh)
        ctx.stash.gates_states, ctx.stash.gates_inputs = book[..., : 3 * size], book[..., size:]
        return _input_gradients(ctx, book[..., size:], w_ih, carry)


class LstmLayer(torch.autograd.Function):
    """(inputs, h0, c0, anchor, stash, weights) -> (states [T, N, H], last cell [N, H]). Hochreiter, Schmidhuber 1997:

    o, i, f = sigmoid(W x + U h); g = tanh(W x + U h); c' = f * c + i * g; h' = o * tanh(c').

    One buffer [T, N, 4H] holds (o, i, f, g) on the way forward and their gradients after the way back.
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, h0: Tensor, c0: Tensor, _anchor: Tensor, stash: Stash, weights: Weights
    ) -> tuple[Tensor, Tensor]:
        w_ih, w_hh, b_ih, b_hh = _halves(weights)
        steps, records, size = inputs.shape[0], inputs.shape[1], w_hh.shape[1]
        w_ih, w_hh = torch.roll(w_ih, size, 0), torch.roll(w_hh, size, 0)
        bias = None if b_ih is None or b_hh is None else torch.roll(b_ih + b_hh, size, 0)
        book = inputs.new_empty(steps, records, 4 * size)
        _project(inputs, w_ih, bias, book)
        states, cells = (inputs.new_empty(steps + 1, records, size) for _ in range(2))
        squashed = inputs.new_empty(steps, records, size)
        states[0], cells[0] = h0, c0
        transposed = w_hh.T
        for step, (before, after) in enumerate(pairwise(states.unbind())):
            row = book[step].addmm_(before, transposed)
            row[:, : 3 * size].sigmoid_()
            o, i, f, g = torch.split(row, size, dim=1)
            g.tanh_()
            cell = torch.mul(f, cells[step], out=cells[step + 1]).addcmul_(i, g)
            torch.mul(o, torch.tanh(cell, out=squashed[step]), out=after)
        stash.inputs, stash.states = inputs.detach(), states[:-1]
        ctx.kept, ctx.stash = (book, cells, squashed, w_ih, w_hh), stash
        return states[1:], cells[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, last_cell: Tensor) -> tuple[Tensor | None, ...]:
        book, cells, squashed, w_ih, w_hh = ctx.kept
        ctx.kept = None
        steps, size = len(book), book.shape[2] // 4
        carry, cell, unit = grad[-1].contiguous(), last_cell.clone(), _unit(book)
        through, to_o, to_i, to_f, to_g = (torch.empty_like(carry) for _ in range(5))
        for step in range(steps - 1, -1, -1):
            o, i, f, g = torch.split(book[step], size, dim=1)
            torch.addcmul(unit, squashed[step], squashed[step], value=-1, out=through).mul_(o)
            cell.addcmul_(carry, through)
            for factor, gate, other in ((to_o, o, squashed[step]), (to_i, i, g), (to_f, f, cells[step])):
                torch.mul(gate, other, out=factor)
                factor.addcmul_(factor, gate, value=-1)
            torch.addcmul(unit, g, g, value=-1, out=to_g).mul_(i)
            torch.mul(to_o, carry, out=o)
            torch.mul(to_i, cell, out=i)
            torch.mul(to_g, cell, out=g)
            torch.mul(cell, f, out=through)
            torch.mul(to_f, cell, out=f)
            cell, through = through, cell
            carry = torch.mm(book[step], w_hh)
            if step:
                carry += grad[step - 1]
        ctx.stash.gates_states = ctx.stash.gates_inputs = book
        return _input_gradients(ctx, book, w_ih, carry, cell)


def _input_gradients(ctx: Any, gates: Tensor, w_ih: Tensor, *states: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients for (inputs, initial states..., anchor, stash, weights)."""
    inputs = torch.matmul(gates, w_ih) if ctx.needs_input_grad[0] else None
    return inputs, *states, gates.new_zeros(()), None, None


class GatesUse(MatrixUse):
    """``weight_ih`` or ``weight_hh`` of one layer and direction; the gradient comes by ``stash``, not by autograd."""

    def __init__(
        self,
        names: tuple[str | None, str | None],
        shape: torch.Size,
        anchor: Tensor,
        stash: Stash,
        to_states: bool,
        rolled: bool,
    ) -> None:
        assert stash.inputs is not None
        assert stash.states is not None
        super().__init__(names, shape, anchor, (stash.inputs,))
        self._stash, self._to_states, self._rolled = stash, to_states, rolled
        self._size = stash.states.shape[-1]

    def bytes_held(self) -> int:
        assert self._stash.inputs is not None
        steps, records = self._stash.inputs.shape[:2]
        return steps * records * (self.shape[1] + 2 * self.shape[0]) * self._stash.inputs.element_size()

    def like(self) -> Tensor:
        return self._b

    def bind(self, gradient: Tensor) -> None:  # noqa: ARG002 — the anchor's gradient says only that backward ran
        stash = self._stash
        inputs, gates = (stash.states, stash.gates_states) if self._to_states else (stash.inputs, stash.gates_inputs)
        assert inputs is not None
        assert gates is not None
        self._a, self._b = inputs.transpose(0, 1), gates.transpose(0, 1)

    @property
    def rows(self) -> int:
        return self._a.shape[1]

    def operands(self, group: Group) -> tuple[Tensor, Tensor]:
        return group.take(self._a).flatten(1, 2), group.take_gradient(self._b).flatten(1, 2)

    def all_operands(self) -> tuple[Tensor, Tensor]:
        return self._a, self._b

    def ordered(self, gradient: Tensor, dimension: int) -> Tensor:
        return torch.roll(gradient, -self._size, dimension) if self._rolled else gradient
