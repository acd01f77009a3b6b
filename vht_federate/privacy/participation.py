"""Who was in which run: patients with the same history of runs form a group and share one account.

A run (a visit, or a query) includes some patients of a hospital. Nothing is kept for each patient but the number of
its group; a group is split when a run includes a part of it. A million patients with two hundred runs behind them fit
in 12 MB, and what is asked of their accounts is asked of their groups.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from vht_federate.errors import BudgetError, InputError

__all__ = ["Group", "Included", "Participation", "subject_number"]

Numbers = NDArray[np.uint64]
Indices = NDArray[np.int32]


def subject_number(subject: str) -> int:
    """The first 64 bits of a subject's keyed hash (hex). Should two agree, they share one account, charged for both."""
    return int(subject[:16], 16)


@dataclass(frozen=True)
class Group:
    """Patients of one ``population`` who were in the same ``runs``, in the order in which these were placed."""

    population: Literal["train", "test"]
    runs: tuple[str, ...]


@dataclass(frozen=True, repr=False)
class Included:
    """The patients of one run: ``subjects`` uint64 [patients], rising; ``test`` bool [patients], the public split.

    ``persons`` lists the numbers of each patient who has several, all of them among ``subjects``.
    """

    subjects: Numbers
    test: NDArray[np.bool_]
    persons: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.subjects.shape != self.test.shape or self.subjects.ndim != 1:
            raise InputError("one number and one population for each patient", code="VHT-INPUT-PARTICIPATION")
        if len(self.subjects) > 1 and not (self.subjects[1:] > self.subjects[:-1]).all():
            raise InputError("patients of a run are named once each, in order", code="VHT-INPUT-PARTICIPATION")

    @classmethod
    def of(cls, subjects: Sequence[str], test: Sequence[bool], persons: Iterable[Sequence[str]] = ()) -> "Included":
        """From subject keys (64 hex digits) in any order."""
        numbers = np.fromiter((subject_number(subject) for subject in subjects), dtype=np.uint64, count=len(subjects))
        distinct, first = np.unique(numbers, return_index=True)
        numbers_by_person = tuple(tuple(sorted(map(subject_number, ids))) for ids in persons if len(ids) > 1)
        return cls(distinct, np.asarray(test, dtype=bool)[first], numbers_by_person)

    def __len__(self) -> int:
        return len(self.subjects)

    def __repr__(self) -> str:
        return "Included(redacted)"


@dataclass(frozen=True, repr=False)
class Participation:
    """``subjects`` uint64 [patients], rising; ``group`` int32 [patients], places in ``groups``; no group is empty."""

    subjects: Numbers
    group: Indices
    groups: tuple[Group, ...]

    @classmethod
    def empty(cls) -> "Participation":
        return cls(np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.int32), ())

    def __len__(self) -> int:
        """Patients who were in any run."""
        return len(self.subjects)

    def __repr__(self) -> str:
        return f"Participation({len(self.groups)} groups, patients redacted)"

    @property
    def placed(self) -> frozenset[str]:
        """Runs of which it is known whom they include."""
        return frozenset(run for group in self.groups for run in group.runs)

    def sizes(self) -> NDArray[np.int64]:
        """Patients [groups]."""
        return np.bincount(self.group, minlength=len(self.groups)).astype(np.int64)

    def touched(self, included: Included) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """How many of ``included`` are in each group [groups], and how many in none: [train, test]."""
        at, known = self._find(included)
        counts = np.bincount(self.group[at[known]], minlength=len(self.groups)).astype(np.int64)
        return counts, np.bincount(included.test[~known], minlength=2).astype(np.int64)

    def joined(self, persons: Iterable[Sequence[int]]) -> "Participation":
        """The same where the numbers of one patient have one history: all runs that any of them was in.

        Raises BudgetError VHT-BUDGET-PARTICIPATION for numbers on both sides of the public split.
        """
        group, groups = self.group.copy(), list(self.groups)
        for person in persons:
            numbers = np.array(sorted(person), dtype=np.uint64)
            at, known = self._find(Included(numbers, np.zeros(len(numbers), dtype=bool)))
            histories = [groups[place] for place in sorted(set(group[at[known]].tolist()))]
            if len(histories) < 2:
                continue
            if len({history.population for history in histories}) > 1:
                raise BudgetError("a patient is on one side of the public split", code="VHT-BUDGET-PARTICIPATION")
            runs = dict.fromkeys(run for history in histories for run in history.runs)
            group[at[known]] = len(groups)
            groups.append(replace(histories[0], runs=tuple(runs)))
        return self if len(groups) == len(self.groups) else _of(self.subjects, _merged(groups)[group], groups)

    def place(self, run: str, included: Included) -> "Participation":
        """The same with ``run`` in the history of ``included``, and one history for each of their persons.

        Raises BudgetError VHT-BUDGET-PARTICIPATION for a run that was placed before, or where a patient is said to
        have changed sides of the public split.
        """
        if run in self.placed:
            raise BudgetError("it was said before whom this run includes", code="VHT-BUDGET-PARTICIPATION")
        if included.persons:
            return self.joined(included.persons).place(run, replace(included, persons=()))
        at, known = self._find(included)
        place = at[known]
        test = np.array([group.population == "test" for group in self.groups], dtype=bool)
        if (test[self.group[place]] != included.test[known]).any():
            raise BudgetError("a patient does not change sides of the public split", code="VHT-BUDGET-PARTICIPATION")
        inside = np.zeros(len(self.subjects), dtype=np.int64)
        inside[place] = 1
        code = np.concatenate([2 * self.group + inside, 2 * len(self.groups) + included.test[~known]])
        histories = [history for group in self.groups for history in (group, replace(group, runs=(*group.runs, run)))]
        histories += [Group("train", (run,)), Group("test", (run,))]
        subjects = np.concatenate([self.subjects, included.subjects[~known]])
        order = np.argsort(subjects, kind="stable")  # two rising pieces: one merge
        return _of(subjects[order], code[order], histories)

    def remove(self, run: str) -> "Participation":
        """The same without ``run``, which drew nothing. Patients in no other run are forgotten."""
        histories = [replace(group, runs=tuple(other for other in group.runs if other != run)) for group in self.groups]
        kept = np.array([bool(history.runs) for history in histories], dtype=bool)[self.group]
        return _of(self.subjects[kept], _merged(histories)[self.group[kept]], histories)

    def _find(self, included: Included) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Where each of ``included`` would stand, and whether it stands there."""
        at = np.searchsorted(self.subjects, included.subjects)
        known = at < len(self.subjects)
        known[known] = self.subjects[at[known]] == included.subjects[known]
        return at, known


def _merged(histories: Sequence[Group]) -> NDArray[np.int64]:
    """The first place of each history among equal ones."""
    first: dict[Group, int] = {}
    return np.array([first.setdefault(history, place) for place, history in enumerate(histories)], dtype=np.int64)


def _of(subjects: Numbers, code: NDArray[np.int64], histories: Sequence[Group]) -> Participation:
    """Groups numbered anew, without the empty ones; ``code`` are places in ``histories``."""
    used = np.flatnonzero(np.bincount(code, minlength=len(histories)))
    number = np.zeros(len(histories), dtype=np.int32)
    number[used] = np.arange(len(used), dtype=np.int32)
    return Participation(subjects, number[code], tuple(histories[int(place)] for place in used))
