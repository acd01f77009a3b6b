"""``conv1d`` and ``conv2d``: a weight matrix applied to patches (im2col)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.autograd.graph import GradientEdge

from vht_federate.privacy.engine.grouping import Group, single_group
from vht_federate.privacy.engine.layers.matrix import MatrixUse

__all__ = ["ConvolutionUse", "Geometry", "padding_of"]


def padding_of(padding: str | int | Sequence[int], kernel: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """What ``F.pad`` must add (last dimension first): 'same' pads the odd one at the end, as torch does."""
    if padding == "valid":
        return [0] * (2 * len(kernel))
    amounts = []
    for axis in reversed(range(len(kernel))):
        if padding == "same":
            total = dilation[axis] * (kernel[axis] - 1)
            amounts += [total // 2, total - total // 2]
        else:
            amount = padding if isinstance(padding, int) else padding[axis % len(padding)]
            amounts += [int(amount), int(amount)]
    return amounts


class Geometry:
    """Stride, padding, dilation and groups of one convolution of one or two dimensions."""

    def __init__(
        self,
        kernel: Sequence[int],
        stride: int | Sequence[int],
        padding: str | int | Sequence[int],
        dilation: int | Sequence[int],
        groups: int,
    ) -> None:
        self.kernel = tuple(kernel)
        self.stride = _each_axis(stride, len(kernel))
        self.dilation = _each_axis(dilation, len(kernel))
        self.pad = padding_of(padding, self.kernel, self.dilation)
        self.groups = groups

    def patches(self, inputs: Tensor) -> Tensor:
        """[N, channels, ...] to [N, channels, positions of the kernel..., output positions...], a strided view."""
        padded = F.pad(inputs, self.pad) if any(self.pad) else inputs
        padded = padded.contiguous()
        axes = len(self.kernel)
        strides = padded.stride()
        sizes = [
            (padded.shape[2 + axis] - self.dilation[axis] * (self.kernel[axis] - 1) - 1) // self.stride[axis] + 1
            for axis in range(axes)
        ]
        return padded.as_strided(
            (*padded.shape[:2], *self.kernel, *sizes),
            (
                *strides[:2],
                *(strides[2 + axis] * self.dilation[axis] for axis in range(axes)),
                *(strides[2 + axis] * self.stride[axis] for axis in range(axes)),
            ),
        )


def _each_axis(value: int | Sequence[int], axes: int) -> tuple[int, ...]:
    several = (value,) if isinstance(value, int) else tuple(value)
    return several * axes if len(several) == 1 else several


class ConvolutionUse(MatrixUse):
    """Records [N, channels, length] or [N, channels, height, width]."""

    def __init__(
        self,
        inputs: Tensor,
        names: tuple[str | None, str | None],
        shape: torch.Size,
        geometry: Geometry,
        edge: GradientEdge,
        outputs: int,
    ) -> None:
        super().__init__(names, shape, edge, (inputs,))
        self._inputs, self._geometry, self._outputs = inputs, geometry, outputs

    def bytes_held(self) -> int:
        return (self._inputs.numel() + 2 * self._outputs) * self._inputs.element_size()

    def like(self) -> Tensor:
        return self._b

    def bind(self, gradient: Tensor) -> None:
        self._a = self._inputs.detach()
        self._b = gradient.reshape(len(gradient), self._geometry.groups, -1, gradient.shape[2:].numel())

    @property
    def rows(self) -> int:
        return self._b.shape[-1]

    def saving(self, each: int) -> float:
        return super().saving(each) if self._geometry.groups == 1 else -math.inf

    def operands(self, group: Group) -> tuple[Tensor, Tensor]:
        inputs, outputs = self._by_channels(group)
        return inputs[:, 0], outputs[:, 0]

    def all_operands(self) -> tuple[Tensor, Tensor]:
        return self.operands(single_group(len(self._b)))

    def _by_channels(self, group: Group) -> tuple[Tensor, Tensor]:
        """Patches [p, channel groups, length, in] and gradients [p, channel groups, length, out]."""
        inputs, outputs = group.take(self._a), group.take_gradient(self._b)
        p, each, groups = outputs.shape[:3]
        patches = self._geometry.patches(inputs.flatten(0, 1))
        positions = outputs.shape[-1]
        wide = patches.shape[1] // groups * self.shape[2:].numel()
        a = patches.reshape(p, each, groups, wide, positions).permute(0, 2, 1, 4, 3).reshape(p, groups, -1, wide)
        b = outputs.permute(0, 2, 1, 4, 3).reshape(p, groups, -1, outputs.shape[3])
        return a, b

    def write(self, group: Group, into: Tensor) -> None:
        if self._geometry.groups == 1:
            super().write(group, into)
            return
        inputs, outputs = self._by_channels(group)
        size = self.shape.numel()
        if self.weight:
            into[:, :size] = (outputs.transpose(2, 3) @ inputs).flatten(1)
        if self.bias:
            into[:, -self.shape[0] :] = outputs.sum(2).flatten(1)

    def read(self, flat: Tensor) -> dict[str, Tensor]:
        if self._geometry.groups == 1:
            return super().read(flat)
        gradients = {}
        if self.weight:
            gradients[self.weight] = flat[..., : self.shape.numel()].view(*flat.shape[:-1], *self.shape)
        if self.bias:
            gradients[self.bias] = flat[..., -self.shape[0] :]
        return gradients
