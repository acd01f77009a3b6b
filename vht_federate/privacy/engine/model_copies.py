"""Copies of a model to ask questions of: in float64, and at weights where neither zeros nor rounding hide an answer.

The model handed in is not touched. A model that holds on to its own precision is asked in that.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vht_federate.privacy.engine.refusal import Unsupported, trained

__all__ = ["Replica", "large", "moderate", "nudged", "nudged_inputs", "without_dropout"]

_LARGE = 1000.0
_NUDGE = 64  # units in the last place: more than the rounding of one operation, whatever the order of additions

# (weights, their generator) -> other weights of the same shape
Redraw = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Replica:
    """``model``: a copy of its own. ``inputs``: made-up records in the precision that it is asked in."""

    model: nn.Module
    inputs: tuple[Tensor, ...]

    @classmethod
    def of(cls, model: nn.Module, inputs: Sequence[Tensor]) -> "Replica":
        """In float64, or in the model's own precision where it fails in float64. Unsupported: it cannot be copied."""
        wide = cls(_copied(model).double(), tuple(map(_double, inputs)))
        try:
            with torch.no_grad(), without_dropout(wide.model):
                wide.model(*wide.inputs)
        except Exception:  # float32 written into the code, or tensors that are no buffers
            return cls(_copied(model), tuple(inputs))
        return wide

    @torch.no_grad()
    def at(self, redraw: Redraw) -> "Replica":
        """The same at other weights. Frozen parameters and buffers stay: training does not move them."""
        generator = torch.Generator().manual_seed(40)
        copied = _copied(self.model)
        for value in trained(copied).values():
            value.copy_(redraw(value, generator))
        return Replica(copied, self.inputs)


def moderate(value: Tensor, generator: torch.Generator) -> Tensor:
    """Sizes as a layer starts with (1 / sqrt(inputs)), none of them zero; signs are kept, so that a rate stays one."""
    inputs = value[0].numel() if value.dim() > 1 and len(value) else 1
    drawn = _normal(value, generator) / max(1, inputs) ** 0.5
    return torch.where(torch.isfinite(value) & (value != 0), drawn.abs() * torch.sign(value), drawn)


def large(value: Tensor, generator: torch.Generator) -> Tensor:
    """A thousand times that: what happens beyond a threshold happens here."""
    return moderate(value, generator) * _LARGE


def nudged(value: Tensor, generator: torch.Generator) -> Tensor:
    """Each number moved by about as much as rounding may."""
    return value * (1.0 + _normal(value, generator) * (_NUDGE * torch.finfo(value.dtype).eps))


def nudged_inputs(inputs: Sequence[Tensor]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(41)
    return [nudged(value, generator) if value.is_floating_point() else value for value in inputs]


@contextmanager
def without_dropout(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while, each module back to its own after."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def _copied(model: nn.Module) -> nn.Module:
    try:
        return deepcopy(model)
    except Exception:
        raise Unsupported("the model cannot be copied") from None
