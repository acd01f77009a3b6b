"""``layer_norm``, ``group_norm`` and ``rms_norm``: the scale and shift of normalised inputs; gradients are small."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from vht_federate.privacy.engine.use import Use, rows_of

__all__ = ["NormUse"]


class NormUse(Use):
    """``normalise``: the layer without scale and shift. ``channels_last``: scale runs over the last dimensions

    (layer and RMS norm) and not over the second (group norm).
    """

    def __init__(
        self,
        inputs: Tensor,
        normalise: Callable[[Tensor], Tensor],
        weight: tuple[str | None, tuple[int, ...]],
        bias: str | None,
        channels_last: bool,
        edge: GradientEdge,
    ) -> None:
        self._weight, self._shape = weight
        super().__init__(tuple(name for name in (self._weight, bias) if name), edge, (inputs,))
        self._inputs, self._normalise, self._bias, self._channels_last = inputs, normalise, bias, channels_last

    def bytes_held(self) -> int:
        return 3 * self._inputs.numel() * self._inputs.element_size()

    def like(self) -> Tensor:
        return self._b

    def _bind(self, gradient: Tensor) -> None:
        self._b = gradient.reshape(self.patients, -1, *gradient.shape[1:])

    def floats(self) -> int:
        size = 1
        for extent in self._shape:
            size *= extent
        return size * len(self.parameters)

    def write(self, rows: slice, into: Tensor) -> None:
        outputs = rows_of(self._b, rows)
        size = self.floats() // len(self.parameters)
        if self._weight:
            inputs = rows_of(self._inputs.detach().reshape(self.patients, -1, *self._inputs.shape[1:]), rows)
            normal = self._normalise(inputs.flatten(0, 1)).view(outputs.shape)
            self._sum(normal * outputs, into[:, :size])
        if self._bias:
            self._sum(outputs, into[:, -size:])

    def read(self, flat: Tensor) -> dict[str, Tensor]:
        parts = flat.view(*flat.shape[:-1], len(self.parameters), *self._shape).unbind(flat.dim() - 1)
        return dict(zip(self.parameters, parts, strict=True))

    def _sum(self, product: Tensor, into: Tensor) -> None:
        """[p, records, ...] over all but the scale's own dimensions to [p, size]."""
        if self._channels_last:
            torch.sum(product.reshape(len(product), -1, into.shape[1]), 1, out=into)
        else:
            torch.sum(product.reshape(*product.shape[:2], into.shape[1], -1), (1, 3), out=into)
