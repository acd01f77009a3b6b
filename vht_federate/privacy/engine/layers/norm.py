"""``layer_norm``, ``group_norm`` and ``rms_norm``: the scale and shift of normalised inputs; gradients are small."""

import math

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from vht_federate.privacy.engine.grouping import Group
from vht_federate.privacy.engine.parameter_use import Use

__all__ = ["NormUse"]


class NormUse(Use):
    """One use of a normalisation. ``normal`` [N, ...]: its inputs normalised, before scale and shift.

    ``channels_last``: scale runs over the last dimensions (layer and RMS norm) and not over the second (group norm).
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

    def bind(self, gradient: Tensor) -> None:
        self._a, self._b = self._by_record(self._normal.detach()), self._by_record(gradient)

    def _by_record(self, tensor: Tensor) -> Tensor:
        """[records, rows, size], or [records, size, positions] where channels come second."""
        if self._channels_last:
            return tensor.reshape(len(tensor), -1, math.prod(self._shape))
        return tensor.reshape(len(tensor), self._shape[0], -1)

    def floats(self) -> int:
        return math.prod(self._shape) * len(self.parameters)

    def write(self, group: Group, into: Tensor) -> None:
        outputs = group.take_gradient(self._b)
        size = math.prod(self._shape)
        over = (1, 2) if self._channels_last else (1, 3)
        if self._weight:
            torch.sum(group.take(self._a) * outputs, over, out=into[:, :size])
        if self._bias:
            torch.sum(outputs, over, out=into[:, -size:])

    def read(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.view(*flat.shape[:-1], len(self.parameters), *self._shape).unbind(flat.dim() - 1)
        return dict(zip(self.parameters, parts, strict=True))
