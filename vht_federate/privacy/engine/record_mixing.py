"""Whether a record's output is its own: asked with made-up records, at several weights, where rounding cannot answer.

Two questions. Does an output change when the other records of the batch do? That is one computation of one shape, so
that on any processor an answer of yes means mixing. And does it change with their number? Other shapes run other
kernels, which round otherwise: a difference counts where it is more than a nudge of all numbers by some units in the
last place explains. At moderate weights a nudge explains next to nothing, or the model is not taken.
"""

import torch
from torch import Tensor

from vht_federate.privacy.engine.model_copies import Replica, large, nudged, nudged_inputs, without_dropout
from vht_federate.privacy.engine.refusal import Unsupported

__all__ = ["check_apart"]

_PATTERNS_OF_GAPS = 3
_MIDDLE = 1
_UNCLEAR = 1e-3  # of the largest output: where a nudge explains more than that, nothing has been asked


@torch.no_grad()
def check_apart(own: Replica, typical: Replica) -> None:
    """Raise Unsupported where an output depends on the batch around its record.

    Asked at the model's ``own`` weights, at moderate ones, ``typical`` (a weight of zero hides what it multiplies), and
    at large ones (what begins beyond a threshold, training may reach).
    """
    _ask(own, _PATTERNS_OF_GAPS)
    if _ask(typical, _PATTERNS_OF_GAPS) > _UNCLEAR:
        raise Unsupported("rounding alone moves the outputs, at moderate weights")
    try:
        _ask(own.at(large), 1)
    except Unsupported:
        raise
    except Exception:  # noqa: S110 — no model need work there
        pass


def _ask(replica: Replica, patterns: int) -> float:
    """Raise Unsupported where records are mixed; else the share of the largest output that a nudge moves."""
    with without_dropout(replica.model):
        blur, largest = _moved_by_a_nudge(replica)
        others = _others(replica)
        for gaps in range(patterns):
            records = [_with_gaps(value, gaps) for value in replica.inputs]
            around = [_with_gaps(value, gaps + 1) for value in others]
            together = replica.model(*records)
            alone = replica.model(*(value[_MIDDLE : _MIDDLE + 1] for value in records))
            by_number = _difference(together[_MIDDLE : _MIDDLE + 1], alone)
            by_others = 0.0
            for at in range(len(together)):
                batch = (_replaced(value, at, own) for value, own in zip(around, records, strict=True))
                by_others = max(by_others, _difference(together[at], replica.model(*batch)[at]))
            nothing = largest * torch.finfo(together.dtype).eps ** 0.5
            if by_others > nothing or by_number > 2.0 * blur + nothing:
                raise Unsupported("records of a batch are mixed")
    return blur / largest if largest else 0.0


def _moved_by_a_nudge(replica: Replica) -> tuple[float, float]:
    """By how much, and the largest output."""
    twin = replica.at(nudged)
    outputs = replica.model(*replica.inputs)
    with without_dropout(twin.model):
        blur = _difference(outputs, twin.model(*nudged_inputs(replica.inputs)))
    return blur, float(outputs.nan_to_num(0.0, 0.0, 0.0).abs().max())


def _others(replica: Replica) -> list[Tensor]:
    """Records with other numbers; other categories too, where the model knows any."""
    others = [_other(value) for value in replica.inputs]
    try:
        replica.model(*others)
    except Exception:
        return [new if new.is_floating_point() else old for new, old in zip(others, replica.inputs, strict=True)]
    return others


def _other(value: Tensor) -> Tensor:
    if value.is_floating_point():
        return -1.5 * value.flip(0)
    return ~value if value.dtype == torch.bool else value + 1


def _with_gaps(value: Tensor, gaps: int) -> Tensor:
    """No gap, or every second entry missing, so that no two neighbours in the batch miss the same ones."""
    if not gaps % _PATTERNS_OF_GAPS or not value.is_floating_point():
        return value
    flat = value.clone().reshape(len(value), -1)
    for record in range(len(flat)):
        flat[record, (record + gaps) % 2 :: 2] = torch.nan
    return flat.view(value.shape)


def _replaced(others: Tensor, at: int, records: Tensor) -> Tensor:
    """``others`` with record ``at`` of ``records`` in its place."""
    batch = others.clone()
    batch[at] = records[at]
    return batch


def _difference(outputs: Tensor, reference: Tensor) -> float:
    """The largest; infinite where shapes differ, or one is a number and the other is none."""
    if outputs.shape != reference.shape:
        return torch.inf
    same = (outputs == reference) | (outputs.isnan() & reference.isnan())
    apart = torch.where(same, 0.0, (outputs - reference).abs())
    return float(apart.nan_to_num(torch.inf).max()) if apart.numel() else 0.0
