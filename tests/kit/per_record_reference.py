"""The definition, as slow as can be: one record after the other through plain autograd, in float64.

Where a record is so far out that the definition itself depends on how a processor rounds, nothing equals it but itself.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from kit.rounding_errors import well_conditioned


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
    for patient_id in patient.unique().tolist():
        rows = torch.nonzero(patient == patient_id).flatten().tolist()
        mean = {name: torch.zeros_like(value) for name, value in parameters.items()}
        for row in rows:
            outputs = model(*(value[row : row + 1] for value in inputs))
            gradients = torch.autograd.grad(
                loss(outputs, targets[row : row + 1]), list(parameters.values()), allow_unused=True
            )
            for name, value in zip(parameters, gradients, strict=True):
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


def largest_difference(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    assert actual.keys() == expected.keys()
    return max(float((actual[name] - value).detach().abs().max()) for name, value in expected.items())


def check_broken_patients_cost_themselves_alone(
    sum_of: Callable[[float], dict[str, Tensor]],
    definition: Callable[[Sequence[int], float], dict[str, Tensor]],
    patients: Sequence[int],
    broken: Sequence[int],
    norm: float,
) -> None:
    """``sum_of`` a clipping norm: the engine's, of all ``patients``. ``definition``: of some patients, at a norm.

    Everybody for whom the definition is well conditioned has exactly the share that it gives. What remains belongs to
    the others: no longer than the norm each, and, of one patient, the same at half the norm but for the clipping.
    """
    sums = [sum_of(bound) for bound in (norm, norm / 2)]
    assert all(bool(torch.isfinite(value).all()) for total in sums for value in total.values())
    if all(
        largest_difference(total, definition(patients, bound)) < 1e-10
        for total, bound in zip(sums, (norm, norm / 2), strict=True)
    ):
        return
    unclear = [
        patient for patient in broken if not well_conditioned(lambda patient=patient: definition([patient], norm))
    ]
    assert unclear, "the engine and a well conditioned definition differ"
    clear = [patient for patient in patients if patient not in unclear]
    remainders = []
    for total, bound in zip(sums, (norm, norm / 2), strict=True):
        remainder = torch.cat([(total[name] - value).flatten() for name, value in definition(clear, bound).items()])
        assert float(remainder.norm()) <= len(unclear) * bound + 1e-10
        remainders.append(remainder)
    if len(unclear) == 1:
        whole, half = remainders
        clipped = whole * min(1.0, norm / 2 / max(float(whole.norm()), 1e-300))
        assert float((clipped - half).abs().max()) < 1e-10
