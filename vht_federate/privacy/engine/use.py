"""One use of parameters in a forward pass, and what it contributes to each patient's gradient."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge

__all__ = ["Use", "norm", "per_group", "rows_of"]


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
        self.patients = 0
        self.each = 0

    @property
    def intact(self) -> bool:
        return all(tensor._version == version for tensor, version in zip(self._held, self._versions, strict=True))

    @abstractmethod
    def bytes_held(self) -> int:
        """Memory of this use for one forward and backward pass, about."""

    def bind(self, gradient: Tensor, patients: int, each: int) -> None:
        """``gradient`` of the records' weighted losses by this use's output, records in order of patients."""
        self.patients, self.each = patients, each
        self._bind(gradient)

    @abstractmethod
    def _bind(self, gradient: Tensor) -> None: ...

    @abstractmethod
    def floats(self) -> int:
        """Floats of one patient's gradient."""

    @abstractmethod
    def like(self) -> Tensor:
        """A tensor of the type and device of its gradients."""

    def ghost(self) -> bool:
        """Whether norms are cheaper without the patients' gradients."""
        return False

    def norms(self, rows: slice) -> list[Tensor]:
        """Norms [patients in rows] of parts that are orthogonal to each other; only where ``ghost()``."""
        raise NotImplementedError

    def weighted(self, factor: Tensor) -> dict[str, Tensor]:
        """Sum over all patients of factor [patients] times their gradients; only where ``ghost()``."""
        raise NotImplementedError

    @abstractmethod
    def write(self, rows: slice, into: Tensor) -> None:
        """Write the gradients of the patients in rows to ``into`` [patients in rows, floats], in any fixed order."""

    @abstractmethod
    def read(self, flat: Tensor) -> dict[str, Tensor]:
        """[..., floats] in that order as {parameter: [..., *shape]}."""


def per_group(tensor: Tensor, patients: int) -> Tensor:
    """[records, ..., width] as [patients, rows of a patient, width], a view where the memory allows."""
    return tensor.reshape(patients, -1, tensor.shape[-1])


def rows_of(tensor: Tensor, rows: slice) -> Tensor:
    return tensor if rows.start == 0 and rows.stop == len(tensor) else tensor[rows]


def norm(tensor: Tensor) -> Tensor:
    """L2 norm of all but the first dimension."""
    flat = tensor if tensor.dim() == 2 else tensor.flatten(1)
    made: Tensor = torch.linalg.vector_norm(flat, dim=1)
    return made
