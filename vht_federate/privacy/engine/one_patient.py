"""One patient's gradient by plain autograd, in slices of records: for patients with many, and for doubtful numbers."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vht_federate.privacy.engine.loss import Loss, output_gradients

__all__ = ["patient_gradient"]


def patient_gradient(
    model: nn.Module,
    loss: Loss,
    parameters: dict[str, nn.Parameter],
    inputs: Sequence[Tensor],
    targets: Tensor,
    records_at_once: int,
) -> dict[str, Tensor]:
    """Mean over the patient's records of their gradients. Memory: one gradient and ``records_at_once`` records."""
    total = {name: torch.zeros_like(value) for name, value in parameters.items()}
    share = 1.0 / len(targets)
    for start in range(0, len(targets), records_at_once):
        rows = slice(start, start + records_at_once)
        with torch.enable_grad():
            outputs = model(*(value[rows] for value in inputs))
        seeds = output_gradients(loss, outputs, targets[rows], share)
        if not outputs.requires_grad:
            continue
        parts = torch.autograd.grad(outputs, list(parameters.values()), seeds, allow_unused=True)
        for name, part in zip(parameters, parts, strict=True):
            if part is not None:
                total[name] += part
    return total
