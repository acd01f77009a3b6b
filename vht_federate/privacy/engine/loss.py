"""Gradient of each record's own loss by the model's output, whatever the loss does with a batch."""

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.func import grad, vmap

__all__ = ["Loss", "output_gradients"]

Loss = Callable[[Tensor, Tensor], Tensor]  # (outputs [n, ...], targets [n, ...]) -> mean loss over the n records


def _elementwise(loss: Loss) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The same loss without its mean, for losses known to be a mean of independent terms of equal weight."""
    if loss is F.binary_cross_entropy_with_logits:
        return lambda outputs, targets: F.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
    if loss is F.mse_loss:
        return lambda outputs, targets: F.mse_loss(outputs, targets, reduction="none")
    if type(loss) is nn.BCEWithLogitsLoss and loss.reduction == "mean" and loss.weight is None:
        return lambda outputs, targets: F.binary_cross_entropy_with_logits(
            outputs, targets, pos_weight=loss.pos_weight, reduction="none"
        )
    if type(loss) is nn.MSELoss and loss.reduction == "mean":
        return lambda outputs, targets: F.mse_loss(outputs, targets, reduction="none")
    return None


def output_gradients(loss: Loss, outputs: Tensor, targets: Tensor, share: Tensor | float) -> Tensor:
    """d loss(outputs[r:r+1], targets[r:r+1]) / d outputs[r] times record r's ``share`` [records] (or one for all).

    A loss that torch averages over independent terms is differentiated at once. Any other goes record by record under
    ``vmap``: weights by class, ignored targets or a norm over the batch would couple patients otherwise.
    """
    leaf = outputs.detach()
    terms = _elementwise(loss) if outputs.shape == targets.shape else None
    if terms is None:
        per_record: Tensor = vmap(
            grad(lambda one, target: loss(one.unsqueeze(0), target.unsqueeze(0)).sum()), randomness="different"
        )(leaf, targets)
    else:
        leaf = leaf.requires_grad_()
        with torch.enable_grad():
            (per_record,) = torch.autograd.grad(terms(leaf, targets).sum(), leaf)
        share = share / max(1, leaf[:1].numel())
    if isinstance(share, Tensor):
        share = share.to(per_record.dtype).view(-1, *[1] * (per_record.dim() - 1))
    return per_record * share
