"""Which patients travel together: micro-batches of whole patients, and in each the groups of equal numbers of records.

The model runs on a micro-batch as it lies. A layer then answers for a group at a time as [patients, records, ...]; a
patient with 9 records may be in a group of 11, with two copies of its last record whose gradient is masked to zero.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from vht_federate.errors import InputError

__all__ = [
    "Group",
    "MicroBatch",
    "Order",
    "Patients",
    "micro_batches",
    "ordered_patients",
    "single_group",
    "size_class",
]

Order = NDArray[np.int64]

_EXACT_UP_TO = 8
_GROWTH = 1.25


@dataclass(frozen=True)
class Group:
    """``members``: positions [patients] in the micro-batch of patients with (up to) ``each`` records.

    ``index``: int64 [patients * each], their records, or None for all records from ``start`` on, in order.
    ``missing``: bool [patients * each], copies that only fill up; None where there is none.
    """

    patients: int
    each: int
    members: Tensor | slice
    start: int = 0
    index: Tensor | None = None
    missing: Tensor | None = None

    def take(self, tensor: Tensor) -> Tensor:
        """[records, ...] as [patients, each, ...]."""
        if self.index is not None:
            rows = tensor[self.index]
        else:
            stop = self.start + self.patients * self.each
            rows = tensor if self.start == 0 and stop == len(tensor) else tensor[self.start : stop]
        return rows.view(self.patients, self.each, *tensor.shape[1:])

    def take_gradient(self, tensor: Tensor) -> Tensor:
        """The same for gradients: those of copies are zero."""
        taken = self.take(tensor)
        if self.missing is None:
            return taken
        return taken.masked_fill(self.missing.view(self.patients, self.each, *[1] * (tensor.dim() - 1)), 0.0)

    def chunks(self, at_once: int) -> Iterator["Group"]:
        """The same patients, at most ``at_once`` of them at a time, as equal as can be."""
        parts = -(-self.patients // max(1, at_once))
        edges = [self.patients * part // parts for part in range(parts + 1)]
        for low, high in pairwise(edges):
            rows = slice(low * self.each, high * self.each)
            if isinstance(self.members, slice):
                members: Tensor | slice = slice(self.members.start + low, self.members.start + high)
            else:
                members = self.members[low:high]
            yield Group(
                high - low,
                self.each,
                members,
                self.start + rows.start,
                None if self.index is None else self.index[rows],
                None if self.missing is None else self.missing[rows],
            )


class Patients(Protocol):
    """What travels through the model together, as the layers and the clipping ask for it."""

    @property
    def patients(self) -> int: ...

    @property
    def single(self) -> bool:
        """One record a patient."""
        ...

    def share(self, device: torch.device) -> Tensor | float:
        """What a record counts in its patient's mean: one for all, or float64 [records]."""
        ...

    def by_record(self, by_patient: Tensor) -> Tensor:
        """[patients] as [records]."""
        ...

    def groups(self, device: torch.device) -> list[Group]: ...


@dataclass(frozen=True)
class MicroBatch:
    """Records ``first[0]`` to ``first[-1]``: those of patient p from ``first[p]`` to ``first[p + 1]``.

    ``large``: one patient alone, with more records than a micro-batch may hold.
    """

    first: Order
    large: bool = False

    @property
    def patients(self) -> int:
        return len(self.first) - 1

    @property
    def records(self) -> slice:
        return slice(int(self.first[0]), int(self.first[-1]))

    @property
    def single(self) -> bool:
        return int(self.first[-1] - self.first[0]) == self.patients

    def share(self, device: torch.device) -> Tensor | float:
        sizes = np.diff(self.first)
        if self.single or (sizes == sizes[0]).all():
            return 1.0 / int(sizes[0])
        return torch.from_numpy(np.repeat(1.0 / sizes, sizes)).to(device)

    def by_record(self, by_patient: Tensor) -> Tensor:
        if self.single:
            return by_patient
        return torch.repeat_interleave(by_patient, torch.from_numpy(np.diff(self.first)).to(by_patient.device))

    def groups(self, device: torch.device) -> list[Group]:
        sizes = np.diff(self.first)
        if self.single or (sizes == sizes[0]).all():
            return [Group(self.patients, int(sizes[0]), slice(0, self.patients))]
        classes: dict[int, list[int]] = {}
        for position, size in enumerate(sizes.tolist()):
            classes.setdefault(size_class(size), []).append(position)
        return [self._group(np.array(members), sizes, device) for _, members in sorted(classes.items())]

    def _group(self, members: Order, sizes: Order, device: torch.device) -> Group:
        own = sizes[members]
        each = int(own.max())
        step = np.arange(each)
        index = (self.first[members] - self.first[0])[:, None] + np.minimum(step, own[:, None] - 1)
        missing = torch.from_numpy(step >= own[:, None]).flatten().to(device) if (own < each).any() else None
        return Group(
            len(members),
            each,
            torch.from_numpy(members).to(device),
            0,
            torch.from_numpy(index).flatten().to(device),
            missing,
        )


def single_group(records: int) -> Group:
    """One record a patient."""
    return Group(records, 1, slice(0, records))


def ordered_patients(patient: Tensor, records: int, patients: int) -> Order:
    """``patient`` [records] on the host.

    Raises InputError VHT-INPUT-PATIENTS unless there is one for each record, non-decreasing and in 0..patients-1: a
    patient in two places would be clipped twice.
    """
    if patient.shape != (records,) or patient.dtype != torch.int64:
        raise InputError("each record needs one int64 patient index", code="VHT-INPUT-PATIENTS")
    order: Order = patient.numpy(force=True)
    if records and (order[0] < 0 or order[-1] >= patients or (records > 1 and np.diff(order).min() < 0)):
        raise InputError(
            "patient indices are non-decreasing and lie in 0..patients-1",
            code="VHT-INPUT-PATIENTS",
            hint="sort the records by patient: one in two places would be clipped twice",
        )
    return order


def size_class(size: int) -> int:
    """The number of records that a patient with ``size`` records is grouped under: at most a quarter more."""
    bound = _EXACT_UP_TO
    while bound < size:
        bound = int(bound * _GROWTH)
    return size if size <= _EXACT_UP_TO else bound


def micro_batches(order: Order, records_at_once: int) -> Iterator[MicroBatch]:
    """Every patient with all records once, in order, in micro-batches of at most ``records_at_once`` records."""
    changes = order[1:] != order[:-1]
    if changes.all():
        first = np.arange(len(order) + 1)
    else:
        first = np.concatenate([[0], np.flatnonzero(changes) + 1, [len(order)]])
    parts = -(-len(order) // records_at_once)
    size = -(-len(order) // parts)  # as equal as can be: a small last micro-batch costs as many calls as a full one
    low, patients = 0, len(first) - 1
    while low < patients:
        high = int(np.searchsorted(first, first[low] + size, side="right")) - 1
        if high <= low:  # one patient with more than an equal part; alone if it is more than a micro-batch may hold
            high = low + 1
        yield MicroBatch(first[low : high + 1], large=bool(first[high] - first[low] > records_at_once))
        low = high
