"""Per-patient gradients: one clipped contribution per patient, whatever the number of its records.

The sum over patients then has L2 sensitivity ``clipping_norm`` under adding or removing one patient with all records,
over all coordinates of all parameters together. ``torch.func.vmap(grad)`` gives each record its own gradient for any
module without state shared between records. Imports torch.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from vht_federate.privacy.clipped_count import Tally

__all__ = ["clipped_sum", "contributions", "record_logits", "unflatten"]

Loss = Callable[[Tensor, Tensor], Tensor]  # (logits [n], outcome [n]) -> mean loss
_CELLS_AT_ONCE = 1 << 23  # gradient coordinates held at a time


def clipped_sum(
    model: torch.nn.Module,
    loss: Loss,
    values: Tensor,
    outcome: Tensor,
    patient: Tensor,
    clipping_norm: float,
    tally: Tally | None = None,
) -> dict[str, Tensor]:
    """Sum over patients of their clipped contributions, float64, by parameter name.

    ``values`` [records, inputs], ``outcome`` [records], ``patient`` int64 [records], non-decreasing: which patient a
    record is of. A patient's contribution is the mean of its records' gradients at the model's weights, scaled down to
    L2 norm ``clipping_norm`` where it is longer; zero where any coordinate is not finite. No record gives zeros.
    ``tally`` is told how many contributions were not longer.
    """
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    total = {name: torch.zeros(value.shape, dtype=torch.float64) for name, value in parameters.items()}
    if not len(patient):
        return total
    _, group = torch.unique_consecutive(patient, return_inverse=True)
    records_at_once = max(1, _CELLS_AT_ONCE // sum(value.numel() for value in parameters.values()))
    for rows in _chunks(group, records_at_once):
        records = _record_gradients(model, loss, parameters, values[rows], outcome[rows])
        summed = _clipped(contributions(records, group[rows] - group[rows][0]), clipping_norm, tally)
        for name, part in summed.items():
            total[name] += part.cpu()
    return total


def record_logits(model: torch.nn.Module, values: Tensor) -> Tensor:
    """Logits [records] of ``values`` [records, ...], each record on its own.

    A model that mixed records (a mean over the batch, say) would let one patient move the scores of all others, and a
    table of scores would no longer have the sensitivity that is accounted. NaN for a record that the model fails on.
    """
    parameters = {name: value.detach() for name, value in model.named_parameters()}
    buffers = dict(model.named_buffers())
    model.eval()

    def one_logit(record: Tensor) -> Tensor:
        logit: Tensor = functional_call(model, (parameters, buffers), (record.unsqueeze(0),))
        return logit.reshape(())

    def guarded(record: Tensor) -> Tensor:
        try:
            return one_logit(record)
        except Exception:
            return next(iter(parameters.values())).new_full((), torch.nan)

    with torch.no_grad():
        if not any(isinstance(module, torch.nn.RNNBase) for module in model.modules()):  # vmap does not know them
            try:
                logits: Tensor = vmap(one_logit)(values)
            except Exception:  # of some record: which one shows when each is alone
                logits = values.new_zeros(0)
            if len(logits):
                return logits
        return torch.stack([guarded(record) for record in values]) if len(values) else values.new_zeros(0)


def contributions(records: Mapping[str, Tensor], group: Tensor) -> dict[str, Tensor]:
    """Mean of record gradients [records, …] within each group 0..G-1, as float64 [G, …].

    Each record is divided by its group's size before it is added, so that finite gradients have a finite mean.
    """
    sizes = torch.bincount(group).to(torch.float64)
    share = 1.0 / sizes[group]
    averaged = {}
    for name, value in records.items():
        weighted = value.to(torch.float64) * share.view(-1, *[1] * (value.dim() - 1))
        zeros = torch.zeros((len(sizes), *value.shape[1:]), dtype=torch.float64, device=value.device)
        averaged[name] = zeros.index_add_(0, group, weighted)
    return averaged


def _clipped(averaged: dict[str, Tensor], clipping_norm: float, tally: Tally | None) -> dict[str, Tensor]:
    """Sum over groups of contributions clipped to ``clipping_norm``.

    Norms are taken after division by the largest entry: squares of 1e200 do not overflow.
    """
    flat = torch.cat([value.reshape(len(value), -1) for value in averaged.values()], dim=1)
    finite = torch.isfinite(flat).all(dim=1)
    flat = torch.where(finite[:, None], flat, 0.0)
    largest = flat.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    unit = flat / largest
    relative = torch.linalg.vector_norm(unit, dim=1, keepdim=True)
    over = relative > clipping_norm / largest
    if tally is not None:
        tally.add(int((finite & ~over[:, 0]).sum()), int(finite.sum()))
    clipped = torch.where(over, unit / relative.clamp_min(1e-300) * clipping_norm, flat)
    return unflatten(clipped.sum(dim=0), {name: value.shape[1:] for name, value in averaged.items()})


def unflatten(flat: Tensor, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """One vector cut into tensors of ``shapes``, in order."""
    parts = torch.split(flat, [shape.numel() for shape in shapes.values()])
    return {name: part.view(shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}


def _record_gradients(
    model: torch.nn.Module, loss: Loss, parameters: dict[str, Tensor], values: Tensor, outcome: Tensor
) -> dict[str, Tensor]:
    """Gradient of each record's own loss, [records, …] by parameter name. Dropout draws for each record anew."""
    buffers = dict(model.named_buffers())

    def record_loss(weights: dict[str, Tensor], record: Tensor, label: Tensor) -> Tensor:
        logits = functional_call(model, (weights, buffers), (record.unsqueeze(0),))
        return loss(logits, label.unsqueeze(0))

    gradients: dict[str, Tensor] = vmap(grad(record_loss), in_dims=(None, 0, 0), randomness="different")(
        parameters, values, outcome
    )
    return gradients


def _chunks(group: Tensor, records_at_once: int) -> list[slice]:
    """Slices of whole patients, ``records_at_once`` records or one patient at most, so that memory is bounded."""
    ends = [*(torch.nonzero(group[1:] != group[:-1]).flatten() + 1).tolist(), len(group)]
    slices, start = [], 0
    for index, end in enumerate(ends):
        following = ends[index + 1] if index + 1 < len(ends) else None
        if following is None or following - start > records_at_once:
            slices.append(slice(start, end))
            start = end
    return slices
