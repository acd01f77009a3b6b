"""``F.linear``: records [N, in] or sequences [N, ..., in]."""

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from vht_federate.privacy.engine.layers.matrix import MatrixUse
from vht_federate.privacy.engine.use import per_group, rows_of

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

    def _bind(self, gradient: Tensor) -> None:
        self._a = per_group(self._inputs.detach(), self.patients)
        self._b = per_group(gradient, self.patients)

    @property
    def length(self) -> int:
        return self._a.shape[1]

    def operands(self, rows: slice) -> tuple[Tensor, Tensor]:
        return rows_of(self._a, rows), rows_of(self._b, rows)


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

    def ghost(self) -> bool:
        return False

    def ordered(self, gradient: Tensor, dimension: int) -> Tensor:
        widths = [0, 0] * (-1 - dimension) + [self._before, self._after]
        return torch.nn.functional.pad(gradient, widths)
