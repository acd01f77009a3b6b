"""The definition, as slow as can be: one record after the other through plain autograd, in float64."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn


def clipped_sum_by_definition(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    inputs: Sequence[Tensor],
    targets: Tensor,
    patient: Tensor,
    clipping_norm: float,
) -> dict[str, Tensor]:
    parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
    total = {name: torch.zeros_like(value) for name, value in parameters.items()}
    for one in patient.unique().tolist():
        rows = torch.nonzero(patient == one).flatten().tolist()
        mean = {name: torch.zeros_like(value) for name, value in parameters.items()}
        for row in rows:
            outputs = model(*(value[row : row + 1] for value in inputs))
            found = torch.autograd.grad(
                loss(outputs, targets[row : row + 1]), list(parameters.values()), allow_unused=True
            )
            for name, value in zip(parameters, found, strict=True):
                if value is not None:
                    mean[name] += value / len(rows)
        flat = torch.cat([value.flatten() for value in mean.values()])
        largest = float(flat.abs().max())
        if not torch.isfinite(flat).all() or largest == 0.0:
            continue
        norm = float(torch.linalg.vector_norm(flat / largest)) * largest
        for name, value in mean.items():
            total[name] += value if norm <= clipping_norm else value / norm * clipping_norm
    return total


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert found.keys() == expected.keys()
    return max(float((found[name] - value).detach().abs().max()) for name, value in expected.items())
