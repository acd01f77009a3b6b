"""``layer_norm``, ``group_norm`` and ``rms_norm``: the scale and shift of normalised inputs; gradients are small."""

import math

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from vht_federate.privacy.engine.use import Use, rows_of

__all__ = ["NormUse"]


class NormUse(Use):
    """``normal`` [N, ...]: inputs normalised, before scale and shift. ``channels_last``: scale runs over the last

    dimensions (layer and RMS norm) and not over the second (group norm).
    """

    def __init__(
        self,
        normal: Tensor,
        shape: tuple[int, ...],
        names: tuple[str | None, str | None],
        channels_last: bool,
        edge: GradientEdge,
    ) -> None:
        super().__init__(tuple(name for name in names if name), edge, (normal,))
        self._weight, self._bias = names
        self._normal, self._shape, self._channels_last = normal, shape, channels_last

    def bytes_held(self) -> int:
        return 3 * self._normal.numel() * self._normal.element_size()

    def like(self) -> Tensor:
        return self._b

    def _bind(self, gradient: Tensor) -> None:
        self._a = self._by_patient(self._normal.detach())
        self._b = self._by_patient(gradient)

    def _by_patient(self, tensor: Tensor) -> Tensor:
        """[patients, rows, size], or [patients, records, size, positions] where channels come second."""
        if self._channels_last:
            return tensor.reshape(self.patients, -1, math.prod(self._shape))
        return tensor.reshape(self.patients, self.each, self._shape[0], -1)

    def floats(self) -> int:
        return math.prod(self._shape) * len(self.parameters)

    def write(self, rows: slice, into: Tensor) -> None:
        outputs = rows_of(self._b, rows)
        size = math.prod(self._shape)
        over = (1,) if self._channels_last else (1, 3)
        if self._weight:
            torch.sum(rows_of(self._a, rows) * outputs, over, out=into[:, :size])
        if self._bias:
            torch.sum(outputs, over, out=into[:, -size:])

    def read(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.view(*flat.shape[:-1], len(self.parameters), *self._shape).unbind(flat.dim() - 1)
        return dict(zip(self.parameters, parts, strict=True))
