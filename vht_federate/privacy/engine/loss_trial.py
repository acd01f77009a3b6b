"""Before the first patient: does a loss give gradients? Asked with made-up outputs and targets, never with patients'.

A loss that fails, or that is the same whatever the model says, would train on noise alone and nobody would know: the
first because a patient on whom a component fails counts as zero, the second because its gradients are zeros.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vht_federate.privacy.engine.loss import Loss, OneByOne, output_gradients
from vht_federate.privacy.engine.refusal import refusal

__all__ = ["tried"]

_RECORDS = 3


def tried(loss: Loss, output: Tensor, targets: Tensor) -> Loss:
    """``loss``, or the same ``OneByOne`` where ``vmap`` does not give what plain autograd does.

    ``output``: of one record, [1, ...]; ``targets`` [n, ...]: shapes and types are taken from both. Raises
    ComponentError VHT-COMPONENT-GRADIENTS for a loss that fails, or whose gradient is zero, whatever it is asked.
    """
    alone = OneByOne(loss)
    answers: list[Tensor] = []
    follows = True
    for outputs, labels in _questions(output, targets):
        plain = _answer(lambda: alone.gradients(outputs, labels))  # noqa: B023 — asked at once
        mapped = _answer(lambda: output_gradients(loss, outputs, labels, 1.0))  # noqa: B023
        if plain is not None and not _same(mapped, plain):
            follows, mapped = False, plain
        if mapped is not None:
            answers.append(mapped)
    if not answers:
        raise refusal(
            "the loss fails on made-up outputs and targets",
            "it takes outputs and targets with a row per record, and gives their mean loss",
        )
    if not any(bool((torch.isfinite(answer) & (answer != 0)).any()) for answer in answers):
        raise refusal(
            "the loss of one record is the same whatever the model says of it",
            "a loss that compares records, as a ranking or Cox's does, or that leaves the graph (detach, item) sums to "
            "zero for every patient",
        )
    return loss if follows else alone


def _questions(output: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Outputs of any sign and outputs in 0..1, each with targets of zeros, of ones, and between where there are any."""
    generator = torch.Generator().manual_seed(21)

    def noise(shape: tuple[int, ...], like: Tensor) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(like)

    anything = noise((_RECORDS, *output.shape[1:]), output)
    shape = (_RECORDS, *targets.shape[1:])
    labels = [targets.new_zeros(shape), targets.new_ones(shape)]
    if targets.is_floating_point():
        labels.append(noise(shape, targets))
    for outputs in (anything, torch.sigmoid(anything)):
        for label in labels:
            yield outputs, label


def _answer(ask: Callable[[], Tensor]) -> Tensor | None:
    try:
        return ask()
    except torch.OutOfMemoryError:
        raise
    except Exception:
        return None


def _same(mapped: Tensor | None, plain: Tensor) -> bool:
    if mapped is None or mapped.shape != plain.shape:
        return False
    apart = (mapped - plain).abs()
    close = torch.finfo(plain.dtype).eps ** 0.5 * plain.nan_to_num(0.0, 0.0, 0.0).abs().max()
    agree = (apart <= close) | (mapped == plain) | (mapped.isnan() & plain.isnan())
    return bool(agree.all())
