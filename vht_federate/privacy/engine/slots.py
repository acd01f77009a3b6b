"""Patients laid out so that no shape depends on who was drawn: slots for patients, each with room for records.

A slot that nobody takes, and room that a patient does not fill, holds a record of zeros whose share in every mean is
zero, so it contributes exactly nothing. However many patients were drawn, a turn does the same work.
"""

from dataclasses import dataclass
from math import ceil, sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vht_federate.privacy.engine.grouping import Group

__all__ = ["Laid", "SlotBatch", "Slots", "slots_for"]

_WASTE = 4  # times the records, and no more, may be worked on
_DEVIATIONS = 4.0  # above the expected batch, so that one turn nearly always does


@dataclass(frozen=True)
class Laid:
    """Turns of one batch: ``rows`` int64 and ``share`` float64, [turns, patients * each]."""

    rows: NDArray[np.int64]
    share: NDArray[np.float64]


@dataclass(frozen=True)
class Slots:
    """``patients`` slots of ``each`` records."""

    patients: int
    each: int

    def lay(self, first: NDArray[np.int64], chosen: NDArray[np.int64]) -> Laid:
        """The records ``first[p]`` to ``first[p + 1]`` of each patient p in ``chosen``, as many turns as it takes.

        Room that is left points to row ``first[-1]``, which must hold zeros.
        """
        turns = max(1, ceil(len(chosen) / self.patients))
        rows = np.full((turns * self.patients, self.each), first[-1], dtype=np.int64)
        share = np.zeros(rows.shape)
        sizes = (first[chosen + 1] - first[chosen])[:, None]
        place = np.arange(self.each)[None, :]
        filled = place < sizes
        rows[: len(chosen)] = np.where(filled, first[chosen][:, None] + place, first[-1])
        share[: len(chosen)] = filled / np.maximum(sizes, 1)
        return Laid(rows.reshape(turns, -1), share.reshape(turns, -1))

    def empty(self, zeros: int) -> Laid:
        """One turn without patients; ``zeros``: the row of zeros."""
        return self.lay(np.array([zeros]), np.zeros(0, dtype=np.int64))


@dataclass(frozen=True)
class SlotBatch:
    """One turn, as the layers and the clipping ask for it (``grouping.Patients``)."""

    patients: int
    each: int
    shares: Tensor

    @property
    def single(self) -> bool:
        return self.each == 1

    @property
    def taken(self) -> Tensor:
        """Slots with a patient who has records, bool [patients]."""
        return self.shares.view(self.patients, self.each)[:, 0] > 0

    def share(self, device: torch.device) -> Tensor | float:
        return self.shares.to(device)

    def by_record(self, by_patient: Tensor) -> Tensor:
        return by_patient[:, None].expand(-1, self.each).reshape(-1)

    def groups(self, device: torch.device) -> list[Group]:  # noqa: ARG002 — nothing to move
        return [Group(self.patients, self.each, slice(0, self.patients))]


def slots_for(sizes: NDArray[np.int64], expected: float, bound: int | None, records_at_once: int) -> Slots | None:
    """Slots for batches of about ``expected`` patients, or of at most ``bound``; None where they do not pay.

    ``sizes`` [patients]: records of each patient. A turn holds at most ``records_at_once`` records. Where a few
    patients have far more records than most, the room for them would be mostly empty.
    """
    each = max(1, int(sizes.max(initial=0)))
    if each > records_at_once or each * len(sizes) > _WASTE * max(1, int(sizes.sum())):
        return None
    wanted = bound if bound is not None else ceil(expected + _DEVIATIONS * sqrt(expected))
    wanted = max(1, min(wanted, len(sizes)))
    turns = ceil(wanted * each / records_at_once)
    return Slots(ceil(wanted / turns), each)
