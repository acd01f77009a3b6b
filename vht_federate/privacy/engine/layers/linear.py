"""``F.linear``: records [N, in] or sequences [N, ..., in]."""

import math

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from vht_federate.privacy.engine.grouping import Group
from vht_federate.privacy.engine.layers.matrix import MatrixUse

__all__ = ["BlockUse", "LinearUse"]


class LinearUse(MatrixUse):
    def __init__(
        self, inputs: Tensor, names: tuple[str | None, str | None], shape: torch.Size, edge: GradientEdge | Tensor
    ) -> None:
        super().__init__(names, shape, edge, (inputs,))
        self._inputs = inputs

    def bytes_held(self) -> int:
        rows = self._inputs.numel() // self.shape[1]
        return rows * (self.shape[1] + 2 * self.shape[0]) * self._inputs.element_size()

    def like(self) -> Tensor:
        return self._b

    def bind(self, gradient: Tensor) -> None:
        records = len(gradient)
        self._a = self._inputs.detach().reshape(records, -1, self.shape[1])
        self._b = gradient.reshape(records, -1, self.shape[0])

    @property
    def rows(self) -> int:
        return self._a.shape[1]

    def operands(self, group: Group) -> tuple[Tensor, Tensor]:
        return group.take(self._a).flatten(1, 2), group.take_gradient(self._b).flatten(1, 2)

    def all_operands(self) -> tuple[Tensor, Tensor]:
        return self._a, self._b


class BlockUse(LinearUse):
    """A block of the weight's rows, as in packed projections: the gradient of the other rows is zero."""

    def __init__(
        self,
        block: slice,
        inputs: Tensor,
        names: tuple[str | None, str | None],
        shape: torch.Size,
        edge: GradientEdge,
    ) -> None:
        super().__init__(inputs, names, torch.Size((block.stop - block.start, shape[1])), edge)
        self._before, self._after = block.start, shape[0] - block.stop

    def saving(self, each: int) -> float:  # noqa: ARG002 — its sum is not of the parameter's shape
        return -math.inf

    def ordered(self, gradient: Tensor, dimension: int) -> Tensor:
        widths = [0, 0] * (-1 - dimension) + [self._before, self._after]
        return torch.nn.functional.pad(gradient, widths)
