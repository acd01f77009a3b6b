"""Whether a record's output is its own: a batch against each of its records alone, on made-up values with gaps."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vht_federate.privacy.engine.refusal import Unsupported

__all__ = ["check_apart"]


@torch.no_grad()
def check_apart(model: nn.Module, inputs: Sequence[Tensor]) -> None:
    """Raise Unsupported where an output depends on the batch around its record, in any of three patterns of gaps."""
    with _without_dropout(model):
        for gaps in range(3):
            made_up = [_with_gaps(value, gaps) for value in inputs]
            together = model(*made_up)
            for record in range(len(together)):
                alone = model(*(value[record : record + 1] for value in made_up))
                if alone.shape[1:] != together.shape[1:] or not _same(together[record], alone[0]):
                    raise Unsupported("records of a batch are mixed")


def _with_gaps(value: Tensor, gaps: int) -> Tensor:
    """No gap, or every second entry missing, so that no two neighbours in the batch miss the same ones."""
    if not gaps or not value.is_floating_point():
        return value
    flat = value.clone().reshape(len(value), -1)
    for record in range(len(flat)):
        flat[record, (record + gaps) % 2 :: 2] = torch.nan
    return flat.view(value.shape)


def _same(one: Tensor, other: Tensor) -> bool:
    precision = torch.finfo(one.dtype).eps ** 0.5
    return torch.allclose(one, other, rtol=precision, atol=precision, equal_nan=True)


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while, each module back to its own after."""
    before = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training
