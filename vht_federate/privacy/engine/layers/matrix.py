"""A weight matrix used as ``output = weight @ input + bias`` at several rows of a patient: the core of most layers.

A patient's weight gradient is ``sum over rows of outer(gradient, input)``. With one row its norm is the product of two
norms; with many it is either the Gram matrices' inner product (ghost norm; Li et al., ICLR 2022) or the matrix itself.
Which one is decided by cost: floating-point operations of each way, with the traffic of the matrix.
"""

from abc import abstractmethod

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from vht_federate.privacy.engine.grouping import Group
from vht_federate.privacy.engine.parameter_use import Use, norm, product_norm, rounded_up, unseen

__all__ = ["MatrixUse"]

_OPERATIONS_PER_FLOAT_KEPT = 16  # writing, squaring and summing an instantiated gradient, in units of one multiply-add


class MatrixUse(Use):
    """``names`` of weight and bias, None where that one is not trained. ``shape`` of the weight."""

    def __init__(
        self,
        names: tuple[str | None, str | None],
        shape: torch.Size,
        edge: GradientEdge | Tensor,
        held: tuple[Tensor, ...],
    ) -> None:
        super().__init__(tuple(name for name in names if name), edge, held)
        (self.weight, self.bias), self.shape = names, shape

    @abstractmethod
    def operands(self, group: Group) -> tuple[Tensor, Tensor]:
        """Inputs [patients, length, in] and output gradients [patients, length, out] of the group's patients."""

    @abstractmethod
    def all_operands(self) -> tuple[Tensor, Tensor]:
        """The same of all records one by one: [records, rows of a record, in] and [..., out]."""

    @property
    @abstractmethod
    def rows(self) -> int:
        """Rows of one record."""

    @property
    def widths(self) -> tuple[int, int]:
        return self.shape[1:].numel(), self.shape[0]

    def floats(self) -> int:
        wide, high = self.widths
        return wide * high * bool(self.weight) + high * bool(self.bias)

    def saving(self, each: int) -> float:
        wide, high = self.widths
        length = each * self.rows
        instantiation_cost = (length + _OPERATIONS_PER_FLOAT_KEPT) * wide * high
        gram = 0 if length == 1 else length * length
        return instantiation_cost - gram * (wide + high) - length * wide * high

    def norms(self, group: Group) -> list[Tensor]:
        inputs, outputs = self.operands(group)
        if inputs.shape[1] == 1:
            after = norm(outputs)
            weight = [product_norm(inputs, after, outputs.shape[2])] if self.weight else []
            return weight + ([after] if self.bias else [])
        return [self._gram_norm(inputs, outputs)]

    def _gram_norm(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        products = torch.bmm(outputs, outputs.transpose(1, 2))
        after = _lengths(products, outputs.shape[2])
        magnitude = after.sum(1).square() if self.bias else after.new_zeros(len(after))
        if not self.weight:
            return rounded_up(products.sum((1, 2)), magnitude, outputs.shape[2])
        gram = torch.bmm(inputs, inputs.transpose(1, 2))
        magnitude += (after * _lengths(gram, inputs.shape[2])).sum(1).square()
        squares = (products * (gram + bool(self.bias))).sum((1, 2))
        return rounded_up(squares, magnitude, inputs.shape[2] + outputs.shape[2])

    def weighted(self, factor: Tensor) -> dict[str, Tensor]:
        inputs, outputs = self.all_operands()
        total = {}
        if self.weight:
            scaled = (outputs * factor.view(-1, 1, 1)).flatten(0, 1)
            matrix = self.ordered(scaled.T @ inputs.flatten(0, 1), -2)
            total[self.weight] = matrix.reshape(-1, *self.shape[1:])
        if self.bias:
            column = outputs[:, 0] if self.rows == 1 else outputs.sum(1)
            total[self.bias] = self.ordered(factor @ column, -1)
        return total

    def write(self, group: Group, into: Tensor) -> None:
        inputs, outputs = self.operands(group)
        wide, high = self.widths
        if self.bias:
            torch.sum(outputs, 1, out=into[:, -high:])
        if self.weight and high > wide:  # BLAS likes the longer side to be the inner one
            torch.bmm(inputs.transpose(1, 2), outputs, out=into[:, : wide * high].view(-1, wide, high))
        elif self.weight:
            torch.bmm(outputs.transpose(1, 2), inputs, out=into[:, : wide * high].view(-1, high, wide))

    def read(self, flat: Tensor) -> dict[str, Tensor]:
        wide, high = self.widths
        gradients = {}
        if self.weight:
            flipped = high > wide
            matrix = flat[..., : wide * high].view(*flat.shape[:-1], *((wide, high) if flipped else (high, wide)))
            matrix = self.ordered(matrix.transpose(-1, -2) if flipped else matrix, -2)
            gradients[self.weight] = matrix.reshape(*flat.shape[:-1], -1, *self.shape[1:])
        if self.bias:
            gradients[self.bias] = self.ordered(flat[..., -high:], -1)
        return gradients

    def ordered(self, gradient: Tensor, dimension: int) -> Tensor:  # noqa: ARG002 — for layers that permute rows
        """``gradient`` with its rows (along ``dimension``, counted from the end) in the parameter's order."""
        return gradient


def _lengths(gram: Tensor, width: int) -> Tensor:
    """Lengths [patients, rows] of rows of ``width`` entries; ``gram`` [patients, rows, rows]: their inner products."""
    return gram.diagonal(dim1=1, dim2=2).sqrt().add_(unseen(gram.dtype, width))
