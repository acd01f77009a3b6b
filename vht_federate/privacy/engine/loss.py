"""Gradient of each record's own loss by the model's output, whatever the loss does with a batch."""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.func import grad, vmap

__all__ = ["Loss", "OneByOne", "output_gradients"]

Loss = Callable[[Tensor, Tensor], Tensor]  # (outputs [n, ...], targets [n, ...]) -> mean loss over the n records


class OneByOne:
    """A loss that ``vmap`` cannot follow, as one that looks at its numbers: records are asked for one by one."""

    def __init__(self, loss: Loss) -> None:
        self._loss = loss

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return self._loss(outputs, targets)

    def gradients(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """By plain autograd, record after record; zero where the loss does not depend on the output."""
        own = [self._of_one(outputs[row : row + 1], targets[row : row + 1]) for row in range(len(outputs))]
        return torch.cat(own) if own else torch.zeros_like(outputs)

    def _of_one(self, output: Tensor, target: Tensor) -> Tensor:
        leaf = output.detach().clone().requires_grad_()
        with torch.enable_grad():
            value = self._loss(leaf, target).sum()
        if not value.requires_grad:
            return torch.zeros_like(output)
        (gradient,) = torch.autograd.grad(value, leaf, allow_unused=True)
        return torch.zeros_like(output) if gradient is None else gradient


def _closed_form(loss: Loss) -> Callable[[Tensor, Tensor], Tensor] | None:
    """d loss / d output of one entry, for losses known to be a plain mean over entries."""
    if loss is F.binary_cross_entropy_with_logits or (
        type(loss) is nn.BCEWithLogitsLoss
        and loss.reduction == "mean"
        and loss.weight is None
        and loss.pos_weight is None
    ):
        return lambda outputs, targets: torch.sigmoid(outputs) - targets
    if loss is F.mse_loss or (type(loss) is nn.MSELoss and loss.reduction == "mean"):
        return lambda outputs, targets: 2.0 * (outputs - targets)
    return None


def output_gradients(loss: Loss, outputs: Tensor, targets: Tensor, share: Tensor | float) -> Tensor:
    """d loss(outputs[r:r+1], targets[r:r+1]) / d outputs[r] times record r's ``share`` [records] (or one for all).

    Any loss but the commonest goes record by record under ``vmap``, or ``OneByOne``: one that weighs by class, ignores
    targets or takes a norm over the batch would couple patients otherwise.
    """
    leaf = outputs.detach()
    closed = _closed_form(loss) if outputs.shape == targets.shape else None
    if closed is not None:
        per_record = closed(leaf, targets)
        share = share / max(1, leaf[0].numel())
    elif isinstance(loss, OneByOne):
        per_record = loss.gradients(leaf, targets)
    else:
        per_record = vmap(
            grad(lambda output, target: loss(output.unsqueeze(0), target.unsqueeze(0)).sum()), randomness="different"
        )(leaf, targets)
    if isinstance(share, Tensor):
        return per_record * share.to(per_record.dtype).view(-1, *[1] * (per_record.dim() - 1))
    return per_record if share == 1.0 else per_record * share
