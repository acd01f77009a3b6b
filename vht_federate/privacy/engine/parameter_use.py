"""One use of parameters in a forward pass, and what it contributes to each patient's gradient."""

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

from vht_federate.privacy.engine.grouping import Group

__all__ = ["Use", "norm", "product_norm", "rounded_up", "unseen"]

_ROUNDINGS = 64  # of long sums, beside those of each product


class Use(ABC):
    """Recorded in the forward pass; ``bind`` gives it the gradient of its output; then it answers for patients.

    ``parameters``: names of the trained parameters in it. ``edge``: what to ask autograd the gradient of.
    ``held``: tensors that it remembers from the forward pass; they must not be changed in place after it.
    """

    def __init__(self, parameters: tuple[str, ...], edge: GradientEdge | Tensor, held: tuple[Tensor, ...]) -> None:
        self.parameters = parameters
        self.edge = edge
        self._held = held
        self._versions = tuple(tensor._version for tensor in held)

    @property
    def intact(self) -> bool:
        return all(tensor._version == version for tensor, version in zip(self._held, self._versions, strict=True))

    @abstractmethod
    def bytes_held(self) -> int:
        """Memory of this use for one forward and backward pass, about."""

    @abstractmethod
    def bind(self, gradient: Tensor) -> None:
        """``gradient``: of the records' weighted losses, by this use's output."""

    @abstractmethod
    def floats(self) -> int:
        """Floats of one patient's gradient."""

    @abstractmethod
    def like(self) -> Tensor:
        """A tensor of the type and device of its gradients."""

    def saving(self, each: int) -> float:  # noqa: ARG002 — for the layers that can
        """Multiply-adds that ghost norms save for a patient with ``each`` records, against its own gradient."""
        return -math.inf

    def norms(self, group: Group) -> list[Tensor]:
        """Ghost norms [patients of the group] of parts orthogonal to each other; where ``saving`` is finite.

        Never below the norms of the gradients as numbers of infinite precision.
        """
        raise NotImplementedError

    def weighted(self, factor: Tensor) -> dict[str, Tensor]:
        """Sum over all records of factor [records] times their gradients; where ``saving`` is finite."""
        raise NotImplementedError

    @abstractmethod
    def write(self, group: Group, into: Tensor) -> None:
        """Write the gradients of the group's patients to ``into`` [patients, floats], in any fixed order."""

    @abstractmethod
    def read(self, flat: Tensor) -> dict[str, Tensor]:
        """[..., floats] in that order as {parameter: [..., *shape]}."""


def norm(tensor: Tensor) -> Tensor:
    """L2 norm of all but the first dimension."""
    flat = tensor if tensor.dim() == 2 else tensor.flatten(1)
    norms: Tensor = torch.linalg.vector_norm(flat, dim=1)
    return norms


def rounded_up(squares: Tensor, magnitude: Tensor, width: int) -> Tensor:
    """Square roots of ``squares`` [patients], sums of products of length ``width``, and never below the exact ones.

    Records of opposite gradients cancel: then the sum is as small as the rounding of its terms, and a patient with a
    long gradient would look like one without any. ``magnitude`` [patients]: the sum of the terms' absolute values.
    """
    error = (width + _ROUNDINGS) * torch.finfo(squares.dtype).eps
    return squares.clamp_min(0.0).add_(magnitude, alpha=error).sqrt_()


def unseen(dtype: torch.dtype, width: int) -> float:
    """What a norm of ``width`` entries may have lost because the squares of small numbers are zero, and more."""
    limits = torch.finfo(dtype)
    return math.sqrt(limits.tiny * width / limits.eps)


def product_norm(inputs: Tensor, after: Tensor, width: int) -> Tensor:
    """The norm of outer products, [patients]; ``after``: norms of the ``width`` gradients of their outputs."""
    dtype = after.dtype
    before = norm(inputs).add_(unseen(dtype, inputs[0].numel() if len(inputs) else 1))
    return before.mul_(after + unseen(dtype, width))
