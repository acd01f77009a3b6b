"""Micro-batches of patients that have the same number of records, so that a layer sees [patients, records, ...].

A patient with 5 records may travel with patients of 6: the missing one is a copy of its own last record with weight
zero, whose gradient is exactly zero unless the patient's contribution is not finite anyway.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vht_federate.errors import InputError

__all__ = ["MicroBatch", "Order", "micro_batches", "ordered_patients", "size_class"]

Order = NDArray[np.int64]

_EXACT_UP_TO = 4
_GROWTH = 1.25


@dataclass(frozen=True)
class MicroBatch:
    """``patients`` x ``each`` records, patient-major.

    ``index``: int64 [patients * each], which records of the batch; None means the slice from ``start`` on.
    ``weight``: float64 [patients * each], a record's share of its patient's mean, 0 for padding; None means 1 / each.
    ``large``: one patient alone, with more records than a micro-batch may hold.
    """

    patients: int
    each: int
    start: int = 0
    index: Tensor | None = None
    weight: Tensor | None = None
    large: bool = False

    @property
    def share(self) -> Tensor | float:
        """What a record counts in its patient's mean: one for all, or one each."""
        return 1.0 / self.each if self.weight is None else self.weight

    def take(self, tensor: Tensor) -> Tensor:
        """The records of this micro-batch out of ``tensor`` [records, ...]."""
        if self.index is not None:
            return tensor[self.index]
        stop = self.start + self.patients * self.each
        return tensor if self.start == 0 and stop == len(tensor) else tensor[self.start : stop]

    def without(self, patients: Tensor) -> "MicroBatch":
        """The same micro-batch less some patients: ``patients`` bool [patients], True for those to leave out."""
        index = self._index(patients.device).view(self.patients, self.each)[~patients]
        weight = None if self.weight is None else self.weight.view(self.patients, self.each)[~patients].flatten()
        return MicroBatch(len(index), self.each, 0, index.flatten(), weight)

    def alone(self, patient: int) -> "MicroBatch":
        """One patient of this micro-batch, padding removed."""
        rows = slice(patient * self.each, (patient + 1) * self.each)
        device = None if self.weight is None else self.weight.device
        index = self._index(device)[rows]
        if self.weight is not None:
            index = index[self.weight[rows] > 0]
        return MicroBatch(1, len(index), 0, index, None, large=True)

    def _index(self, device: torch.device | None) -> Tensor:
        if self.index is not None:
            return self.index
        return torch.arange(self.start, self.start + self.patients * self.each, device=device)


def ordered_patients(patient: Tensor, records: int, patients: int) -> Order:
    """``patient`` on the host. Raises InputError VHT-INPUT-PATIENTS unless non-decreasing, in 0..patients-1, one a

    record: a patient in two places would be clipped twice.
    """
    if patient.shape != (records,) or patient.dtype != torch.int64:
        raise InputError("each record needs one int64 patient index", code="VHT-INPUT-PATIENTS")
    order: Order = patient.numpy(force=True)
    if records and (order[0] < 0 or order[-1] >= patients or (order[1:] < order[:-1]).any()):
        raise InputError(
            "patient indices are non-decreasing and lie in 0..patients-1",
            code="VHT-INPUT-PATIENTS",
            hint="sort the records by patient: one in two places would be clipped twice",
        )
    return order


def size_class(size: int) -> int:
    """The number of records that a patient with ``size`` records is padded to: at most a quarter more."""
    bound = _EXACT_UP_TO
    while bound < size:
        bound = int(bound * _GROWTH)
    return size if size <= _EXACT_UP_TO else bound


def micro_batches(order: Order, records_at_once: int, device: torch.device) -> Iterator[MicroBatch]:
    """Every record once, in micro-batches of at most ``records_at_once`` records but for large patients."""
    changes = order[1:] != order[:-1]
    if changes.all():
        yield from _even(len(order), 1, records_at_once)
        return
    first = np.concatenate([[0], np.flatnonzero(changes) + 1])
    sizes = np.diff(first, append=len(order))
    if (sizes == sizes[0]).all():
        yield from _even(len(sizes), int(sizes[0]), records_at_once)
        return
    classes: dict[int, list[int]] = {}
    for position, size in enumerate(sizes.tolist()):
        classes.setdefault(size_class(size) if size <= records_at_once else 0, []).append(position)
    for position in classes.pop(0, []):
        yield MicroBatch(1, int(sizes[position]), int(first[position]), large=True)
    for padded, members in sorted(classes.items()):
        at_once = max(1, records_at_once // padded)
        for start in range(0, len(members), at_once):
            part = members[start : start + at_once]
            yield _padded(first[part], sizes[part], padded, device)


def _even(patients: int, each: int, records_at_once: int) -> Iterator[MicroBatch]:
    """The batch in order, as equal as can be: 33 patients in micro-batches of at most 10 are 9, 8, 8, 8."""
    if each > records_at_once:
        yield from (MicroBatch(1, each, start * each, large=True) for start in range(patients))
        return
    parts = -(-patients // (records_at_once // each))
    edges = [patients * part // parts for part in range(parts + 1)]
    for low, high in pairwise(edges):
        yield MicroBatch(high - low, each, low * each)


def _padded(first: Order, sizes: Order, each: int, device: torch.device) -> MicroBatch:
    step = np.arange(each)
    index = first[:, None] + np.minimum(step, sizes[:, None] - 1)
    weight = (step < sizes[:, None]) / sizes[:, None]
    return MicroBatch(
        len(sizes), each, 0, torch.from_numpy(index).flatten().to(device), torch.from_numpy(weight).flatten().to(device)
    )
