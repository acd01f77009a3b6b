"""``F.embedding``: a patient's gradient adds the rows of equal indices."""

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from vht_federate.privacy.engine.grouping import Group
from vht_federate.privacy.engine.parameter_use import Use, rounded_up

__all__ = ["EmbeddingUse"]


class EmbeddingUse(Use):
    """Indices [N, ...] into a table [rows, width]; ``padding``: the row that never gets a gradient."""

    def __init__(
        self, indices: Tensor, weight: str, shape: torch.Size, padding: int | None, edge: GradientEdge
    ) -> None:
        super().__init__((weight,), edge, (indices,))
        self._indices, self._shape = indices, shape
        self._padding = None if padding is None else padding % shape[0]

    def bytes_held(self) -> int:
        return self._indices.numel() * 3 * self._shape[1] * 4

    def like(self) -> Tensor:
        return self._b

    def bind(self, gradient: Tensor) -> None:
        self._rows = self._indices.reshape(len(gradient), -1)
        gradient = gradient.reshape(len(gradient), -1, self._shape[1])
        if self._padding is not None:
            gradient = gradient.masked_fill((self._rows == self._padding)[..., None], 0.0)
        self._b = gradient

    def floats(self) -> int:
        return self._shape.numel()

    def saving(self, each: int) -> float:
        length = each * self._rows.shape[1]
        return self._shape.numel() * 4 - length * length * (self._shape[1] + 2)

    def _operands(self, group: Group) -> tuple[Tensor, Tensor]:
        return group.take(self._rows).flatten(1, 2), group.take_gradient(self._b).flatten(1, 2)

    def norms(self, group: Group) -> list[Tensor]:
        indices, outputs = self._operands(group)
        same = indices[:, :, None] == indices[:, None, :]
        gram = torch.bmm(outputs, outputs.transpose(1, 2))
        lengths = gram.diagonal(dim1=1, dim2=2).sqrt()
        return [rounded_up(torch.where(same, gram, 0.0).sum((1, 2)), lengths.sum(1).square(), self._shape[1])]

    def weighted(self, factor: Tensor) -> dict[str, Tensor]:
        scaled = (self._b * factor[:, None, None]).flatten(0, 1)
        return {self.parameters[0]: scaled.new_zeros(self._shape).index_add_(0, self._rows.flatten(), scaled)}

    def write(self, group: Group, into: Tensor) -> None:
        indices, outputs = self._operands(group)
        count = len(indices)
        offsets = torch.arange(count, device=indices.device)[:, None] * self._shape[0]
        flat = outputs.new_zeros((count * self._shape[0], self._shape[1]))
        flat.index_add_(0, (indices + offsets).flatten(), outputs.flatten(0, 1))
        into.copy_(flat.view(count, -1))

    def read(self, flat: Tensor) -> dict[str, Tensor]:
        return {self.parameters[0]: flat.view(*flat.shape[:-1], *self._shape)}
