"""``F.embedding``: a patient's gradient adds the rows of equal indices."""

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from vht_federate.privacy.engine.use import Use, per_group, rows_of

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

    def _bind(self, gradient: Tensor) -> None:
        self._rows = self._indices.reshape(self.patients, -1)
        gradient = per_group(gradient, self.patients)
        if self._padding is not None:
            gradient = gradient.masked_fill((self._rows == self._padding)[..., None], 0.0)
        self._b = gradient

    def floats(self) -> int:
        return self._shape.numel()

    def ghost(self) -> bool:
        length = self._rows.shape[1]
        return length * length * (self._shape[1] + 2) < self._shape.numel() * 4

    def norms(self, rows: slice) -> list[Tensor]:
        indices, outputs = rows_of(self._rows, rows), rows_of(self._b, rows)
        same = indices[:, :, None] == indices[:, None, :]
        gram = torch.bmm(outputs, outputs.transpose(1, 2))
        return [torch.where(same, gram, 0.0).sum((1, 2)).clamp_min_(0.0).sqrt_()]

    def weighted(self, factor: Tensor) -> dict[str, Tensor]:
        scaled = (self._b * factor[:, None, None]).flatten(0, 1)
        return {self.parameters[0]: scaled.new_zeros(self._shape).index_add_(0, self._rows.flatten(), scaled)}

    def write(self, rows: slice, into: Tensor) -> None:
        indices, outputs = rows_of(self._rows, rows), rows_of(self._b, rows)
        count = len(indices)
        offsets = torch.arange(count, device=indices.device)[:, None] * self._shape[0]
        flat = outputs.new_zeros((count * self._shape[0], self._shape[1]))
        flat.index_add_(0, (indices + offsets).flatten(), outputs.flatten(0, 1))
        into.copy_(flat.view(count, -1))

    def read(self, flat: Tensor) -> dict[str, Tensor]:
        return {self.parameters[0]: flat.view(*flat.shape[:-1], *self._shape)}
