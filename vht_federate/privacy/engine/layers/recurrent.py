"""GRU and LSTM, one layer and direction at a time, with a backward pass that keeps every gate's gradient.

Time-major [T, N, ...]. The recurrence touches only what depends on the step before; everything else is done for all
steps at once. Rows of ``weight_hh`` are rolled by one block, to (n, r, z) and (o, i, f, g), so that the gates that
share an operation lie side by side.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from vht_federate.privacy.engine.layers.matrix import MatrixUse
from vht_federate.privacy.engine.use import rows_of

__all__ = ["GatesUse", "GruLayer", "LstmLayer", "Stash"]


class Stash:
    """What a layer keeps for its two uses: inputs and gate gradients, [T, N, ...]; ``None`` before backward."""

    def __init__(self) -> None:
        self.inputs: Tensor | None = None
        self.states: Tensor | None = None
        self.gates_inputs: Tensor | None = None
        self.gates_states: Tensor | None = None


def _projected(inputs: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """[T, N, in] times weight [out, in]: [T, N, out], contiguous."""
    return torch.nn.functional.linear(inputs, weight, bias).contiguous()


class GruLayer(torch.autograd.Function):
    """(inputs, h0, anchor, stash, w_ih, w_hh, b_ih, b_hh) -> states [T, N, H]. Cho et al. 2014, in torch's form:

    r, z = sigmoid(W x + U h); n = tanh(W x + r * (U h)); h' = n + z * (h - n).
    """

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, h0: Tensor, _anchor: Tensor, stash: Stash, weights: tuple[Tensor | None, ...]
    ) -> Tensor:
        w_ih, w_hh, b_ih, b_hh = weights
        assert w_ih is not None
        assert w_hh is not None
        steps, records, size = inputs.shape[0], inputs.shape[1], w_hh.shape[1]
        two, bias = 2 * size, b_ih
        if b_ih is not None and b_hh is not None:
            bias = b_ih + torch.cat([b_hh[:two], torch.zeros_like(b_hh[two:])])
        gates = _projected(inputs, w_ih[:two], None if bias is None else bias[:two])
        news = _projected(inputs, w_ih[two:], None if bias is None else bias[two:])
        hidden_news = inputs.new_empty(steps, records, size)
        states = inputs.new_empty(steps + 1, records, size)
        states[0] = h0
        w_gates, w_new = w_hh[:two].T, w_hh[two:].T
        b_new = torch.zeros_like(w_hh[0]) if b_hh is None else b_hh[two:]
        for gate, new, hidden, before, after in zip(
            gates.unbind(), news.unbind(), hidden_news.unbind(), states[:-1].unbind(), states[1:].unbind(), strict=True
        ):
            gate.addmm_(before, w_gates).sigmoid_()
            torch.addmm(b_new, before, w_new, out=hidden)
            new.addcmul_(gate[:, :size], hidden).tanh_()
            torch.lerp(new, before, gate[:, size:], out=after)
        stash.inputs, stash.states = inputs.detach(), states[:-1]
        ctx.kept, ctx.stash = (gates, news, hidden_news, states, w_ih, w_hh), stash
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gates, news, hidden_news, states, w_ih, w_hh = ctx.kept
        ctx.kept = None
        steps, records, size = news.shape
        update = gates[..., size:]
        factors = _gru_factors(gates, news, hidden_news, states, size)
        rolled = torch.roll(w_hh, size, 0)
        grad = grad.contiguous()
        carry = grad[-1]
        for step in range(steps - 1, -1, -1):
            factor = factors[step]
            factor.view(records, 4, size).mul_(carry.unsqueeze(1))
            before = grad[step - 1] if step else grad.new_zeros(records, size)
            carry = torch.addcmul(before, carry, update[step]).addmm_(factor[:, : 3 * size], rolled)
        ctx.stash.gates_states = factors[..., : 3 * size]
        ctx.stash.gates_inputs = factors[..., size:]
        return _input_gradients(ctx, factors[..., size:], w_ih, carry)


def _gru_factors(gates: Tensor, news: Tensor, hidden_news: Tensor, states: Tensor, size: int) -> Tensor:
    """[T, N, 4H]: what the gradient of h' is multiplied by for U_n h, r, z, n before their activations."""
    reset, update = gates[..., :size], gates[..., size:]
    factors = news.new_empty(*news.shape[:2], 4 * size)
    hidden, r, z, n = torch.split(factors, size, dim=-1)
    torch.addcmul(torch.ones((), dtype=news.dtype, device=news.device), news, news, value=-1, out=n)
    n.addcmul_(n, update, value=-1)
    torch.mul(n, reset, out=hidden)
    torch.mul(hidden, hidden_news, out=r)
    r.addcmul_(r, reset, value=-1)
    torch.sub(states[:-1], news, out=z)
    z.mul_(update)
    z.addcmul_(z, update, value=-1)
    return factors


def _input_gradients(ctx: Any, gates: Tensor, w_ih: Tensor, *states: Tensor) -> tuple[Tensor | None, ...]:
    """Gradients for (inputs, initial states..., anchor, stash, weights)."""
    inputs = torch.matmul(gates, w_ih) if ctx.needs_input_grad[0] else None
    return inputs, *states, gates.new_zeros(()), None, None


class LstmLayer(torch.autograd.Function):
    """(inputs, h0, c0, anchor, stash, weights) -> (states [T, N, H], last cell [N, H]); gates in order (o, i, f, g)."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        h0: Tensor,
        c0: Tensor,
        _anchor: Tensor,
        stash: Stash,
        weights: tuple[Tensor | None, ...],
    ) -> tuple[Tensor, Tensor]:
        w_ih, w_hh, b_ih, b_hh = weights
        assert w_ih is not None
        assert w_hh is not None
        steps, records, size = inputs.shape[0], inputs.shape[1], w_hh.shape[1]
        w_ih, w_hh = torch.roll(w_ih, size, 0), torch.roll(w_hh, size, 0)
        bias = None if b_ih is None or b_hh is None else torch.roll(b_ih + b_hh, size, 0)
        gates = _projected(inputs, w_ih, bias)
        states, cells = (inputs.new_empty(steps + 1, records, size) for _ in range(2))
        squashed = inputs.new_empty(steps, records, size)
        states[0], cells[0] = h0, c0
        transposed = w_hh.T
        for step, gate in enumerate(gates.unbind()):
            gate.addmm_(states[step], transposed)
            gate[:, : 3 * size].sigmoid_()
            gate[:, 3 * size :].tanh_()
            o, i, f, g = torch.split(gate, size, dim=1)
            cell = torch.mul(f, cells[step], out=cells[step + 1]).addcmul_(i, g)
            torch.mul(o, torch.tanh(cell, out=squashed[step]), out=states[step + 1])
        stash.inputs, stash.states = inputs.detach(), states[:-1]
        ctx.kept, ctx.stash = (gates, cells, squashed, w_ih, w_hh), stash
        return states[1:], cells[-1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, last_cell: Tensor) -> tuple[Tensor | None, ...]:
        gates, cells, squashed, w_ih, w_hh = ctx.kept
        ctx.kept = None
        steps, records, size = squashed.shape
        factors, through = _lstm_factors(gates, cells, squashed, size)
        forget = gates[..., 2 * size : 3 * size]
        grad = grad.contiguous()
        carry, cell = grad[-1], last_cell.clone()
        for step in range(steps - 1, -1, -1):
            factor = factors[step]
            cell.addcmul_(carry, through[step])
            factor[:, :size].mul_(carry)
            factor[:, size:].view(records, 3, size).mul_(cell.unsqueeze(1))
            cell.mul_(forget[step])
            before = grad[step - 1] if step else grad.new_zeros(records, size)
            carry = torch.addmm(before, factor, w_hh)
        ctx.stash.gates_states = ctx.stash.gates_inputs = factors
        return _input_gradients(ctx, factors, w_ih, carry, cell)


def _lstm_factors(gates: Tensor, cells: Tensor, squashed: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """[T, N, 4H]: factors of h's gradient for o and of c's for i, f, g; and [T, N, H]: from h's gradient to c's."""
    o, i, f, g = torch.split(gates, size, dim=-1)
    factors = torch.empty_like(gates)
    to_o, to_i, to_f, to_g = torch.split(factors, size, dim=-1)
    one = torch.ones((), dtype=gates.dtype, device=gates.device)
    for made, gate, other in ((to_o, o, squashed), (to_i, i, g), (to_f, f, cells[:-1])):
        torch.mul(gate, other, out=made)
        made.addcmul_(made, gate, value=-1)
    torch.addcmul(one, g, g, value=-1, out=to_g)
    to_g.mul_(i)
    through = torch.addcmul(one, squashed, squashed, value=-1).mul_(o)
    return factors, through


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

    def _bind(self, gradient: Tensor) -> None:  # noqa: ARG002 — the anchor's gradient says only that backward ran
        stash = self._stash
        inputs, gates = (stash.states, stash.gates_states) if self._to_states else (stash.inputs, stash.gates_inputs)
        assert inputs is not None
        assert gates is not None
        self._a, self._b = self._by_patient(inputs), self._by_patient(gates)

    def _by_patient(self, sequence: Tensor) -> Tensor:
        """[T, N, width] to [patients, each * T, width]."""
        if self.each == 1:
            return sequence.transpose(0, 1)
        steps, _, width = sequence.shape
        split = sequence.reshape(steps, self.patients, self.each, width).permute(1, 2, 0, 3)
        return split.reshape(self.patients, self.each * steps, width)

    @property
    def length(self) -> int:
        return self._a.shape[1]

    def operands(self, rows: slice) -> tuple[Tensor, Tensor]:
        return rows_of(self._a, rows), rows_of(self._b, rows)

    def ordered(self, gradient: Tensor, dimension: int) -> Tensor:
        return torch.roll(gradient, -self._size, dimension) if self._rolled else gradient
