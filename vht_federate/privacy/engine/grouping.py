"""Micro-batches of patients that have the same number of records, so that a layer sees [patients, records, ...].

A patient with 5 records may travel with patients of 6: the missing one is a copy of its own last record with weight
zero, whose gradient is exactly zero unless the patient's contribution is not finite anyway.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from vht_federate.errors import InputError

__all__ = ["MicroBatch", "check_patients", "micro_batches", "size_class", "whole_batch"]

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


def check_patients(patient: Tensor, records: int, patients: int) -> None:
    """Raise InputError VHT-INPUT-PATIENTS unless ``patient`` is non-decreasing, in 0..patients-1, one a record."""
    if patient.shape != (records,) or patient.dtype != torch.int64:
        raise InputError("each record needs one int64 patient index", code="VHT-INPUT-PATIENTS")
    if records and not (int(patient[0]) >= 0 and int(patient[-1]) < patients and bool((patient.diff() >= 0).all())):
        raise InputError(
            "patient indices are non-decreasing and lie in 0..patients-1",
            code="VHT-INPUT-PATIENTS",
            hint="sort the records by patient: a patient in two places would be clipped twice",
        )


def size_class(size: int) -> int:
    """The number of records that a patient with ``size`` records is padded to: at most a quarter more."""
    bound = _EXACT_UP_TO
    while bound < size:
        bound = int(bound * _GROWTH)
    return size if size <= _EXACT_UP_TO else bound


def whole_batch(patient: Tensor) -> int:
    """n where every patient present has n records (1 checked first: the common case), else 0."""
    if not len(patient):
        return 0
    changes = torch.count_nonzero(patient.diff())
    present = int(changes) + 1
    if present == len(patient):
        return 1
    each, rest = divmod(len(patient), present)
    if rest:
        return 0
    table = patient.view(present, each)
    return each if bool((table == table[:, :1]).all()) else 0


def micro_batches(patient: Tensor, records_at_once: int) -> Iterator[MicroBatch]:
    """Every record once, in micro-batches of at most ``records_at_once`` records but for large patients."""
    each = whole_batch(patient)
    if each:
        yield from _even(len(patient) // each, each, records_at_once)
        return
    _, sizes = torch.unique_consecutive(patient, return_counts=True)
    first = (sizes.cumsum(0) - sizes).cpu()
    sizes = sizes.cpu()
    classes: dict[int, list[int]] = {}
    for position, size in enumerate(sizes.tolist()):
        classes.setdefault(size_class(size) if size <= records_at_once else 0, []).append(position)
    for padded, members in sorted(classes.items()):
        chosen = torch.tensor(members)
        if padded == 0:
            for start, size in zip(first[chosen].tolist(), sizes[chosen].tolist(), strict=True):
                yield MicroBatch(1, size, start, large=True)
            continue
        for part in torch.split(chosen, max(1, records_at_once // padded)):
            yield _padded(first[part], sizes[part], padded, patient.device)


def _even(patients: int, each: int, records_at_once: int) -> Iterator[MicroBatch]:
    """The batch in order, as equal as can be: 33 patients in fours of at most 10 are 9, 8, 8, 8."""
    if each > records_at_once:
        yield from (MicroBatch(1, each, start * each, large=True) for start in range(patients))
        return
    parts = -(-patients // (records_at_once // each))
    edges = [patients * part // parts for part in range(parts + 1)]
    for low, high in pairwise(edges):
        yield MicroBatch(high - low, each, low * each)


def _padded(first: Tensor, sizes: Tensor, each: int, device: torch.device) -> MicroBatch:
    step = torch.arange(each)
    index = first[:, None] + torch.minimum(step[None, :], sizes[:, None] - 1)
    weight = (step[None, :] < sizes[:, None]).double() / sizes[:, None].double()
    return MicroBatch(len(sizes), each, 0, index.flatten().to(device), weight.flatten().to(device))
