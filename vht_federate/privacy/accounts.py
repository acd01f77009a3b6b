"""Every patient's account at once: may this run include these patients, and how many remain under each cap?

The account of a group of patients (``participation``) is what the runs in its history drew and still hold. A run that
has not said whom it includes counts for everybody: so does a visit between its approval and its cohort, and so does
whatever is known from the log alone. Each cap looks at the runs that it covers, and decides by ``RdpFilter``: a loss of
zero for whoever is not included makes this individual accounting (Feldman and Zrnic 2021).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from vht_federate.domain.budget import POPULATIONS, PrivacyEvent, touching
from vht_federate.errors import BudgetError
from vht_federate.privacy.filters import RdpFilter
from vht_federate.privacy.participation import Included, Participation
from vht_federate.privacy.renyi import COORDINATES, renyi_curve

__all__ = ["Cap", "PatientAccounts", "Remaining", "Run"]

LITTLE = 0.1  # of a cap


@dataclass(frozen=True)
class Run:
    """A visit or a query: what it ``drew``, and what it still ``holds`` reserved."""

    name: str
    dataset: str
    permit: str | None
    drew: tuple[PrivacyEvent, ...] = ()
    holds: tuple[PrivacyEvent, ...] = ()

    @cached_property
    def curves(self) -> NDArray[np.float64]:
        """[2, coordinates]: what a patient of each population pays once everything is drawn."""
        events = (*self.drew, *self.holds)
        return np.stack([renyi_curve(touching(events, population)) for population in POPULATIONS])


@dataclass(frozen=True)
class Cap:
    """No patient's account passes ``epsilon`` at ``delta`` over all runs, or those of one dataset or one permit.

    At 2 ``delta`` in the one case that ``RdpFilter.cost`` names.
    """

    name: str
    epsilon: float
    delta: float
    dataset: str | None = None
    permit: str | None = None

    def covers(self, run: Run) -> bool:
        return self.dataset in (None, run.dataset) and self.permit in (None, run.permit)


@dataclass(frozen=True)
class Remaining:
    """Patients by what is left of a cap; ``able`` of them could pay for the plan in question."""

    patients: int
    untouched: int  # in no run that the cap covers
    half: int  # at least half of the cap is left, the untouched included
    little: int  # less than a tenth is left
    able: int


@dataclass(frozen=True)
class PatientAccounts:
    """``participation`` of patients in ``runs``, by name."""

    participation: Participation
    runs: Mapping[str, Run]

    def require(self, run: Run, included: Included | None, caps: Sequence[Cap]) -> None:
        """May ``run`` spend its events on ``included`` (None: on whoever may come)?

        Raises BudgetError VHT-BUDGET-CAP where any of them would pass any of ``caps``.
        """
        if included is None:
            self._require(run, self.participation.sizes(), np.ones(2, dtype=np.int64), caps)
        elif included.persons:
            joined = PatientAccounts(self.participation.joined(included.persons), self.runs)
            joined.require(run, replace(included, persons=()), caps)
        else:
            self._require(run, *self.participation.touched(included), caps)

    def require_new(self, run: Run, caps: Sequence[Cap]) -> None:
        """The same for patients who were in no run so far."""
        self._require(run, np.zeros(len(self._population), dtype=np.int64), np.ones(2, dtype=np.int64), caps)

    def affords(self, run: Run, cap: Cap) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Could ``run`` include the patients of each group [groups], and new ones of each population [train, test]?"""
        others = self._others(run, cap)
        rule = RdpFilter(cap.epsilon, cap.delta)
        fresh = run.curves + self._everybody(others)
        groups = self._group_curves(others) + fresh[self._population]
        able, able_fresh = rule.admits(groups), rule.admits(fresh)
        for place in np.flatnonzero(~able):
            able[place] = self._fits_as_planned(rule, run, others, int(place))
        for population in np.flatnonzero(~able_fresh):
            charged = [other for other in others if other.name in self._unplaced]
            able_fresh[population] = _fits(rule, run, charged, POPULATIONS[population])
        return able, able_fresh

    def remaining(self, cap: Cap, plan: Run, untouched: int = 0) -> Remaining:
        """How patients stand under ``cap``; ``untouched`` more patients of the dataset were in no run so far."""
        sizes = self.participation.sizes()
        others = self._others(plan, cap)
        everybody = self._everybody(others)
        spent, fresh = self._group_curves(others) + everybody[self._population], everybody.max(axis=0)
        rule = RdpFilter(cap.epsilon, cap.delta)
        left, left_fresh = 1 - rule.charged(spent) / cap.epsilon, 1 - float(rule.charged(fresh)) / cap.epsilon
        able, able_fresh = self.affords(plan, cap)
        return Remaining(
            patients=int(sizes.sum()) + untouched,
            untouched=int(sizes[~spent.any(axis=1)].sum()) + untouched * (not fresh.any()),
            half=int(sizes[left >= 0.5].sum()) + untouched * (left_fresh >= 0.5),
            little=int(sizes[left < LITTLE].sum()) + untouched * (left_fresh < LITTLE),
            able=int(sizes[able].sum()) + untouched * bool(able_fresh.all()),
        )

    # --- parts --------------------------------------------------------------------------------------------------

    @cached_property
    def _unplaced(self) -> frozenset[str]:
        """Runs that may include anybody."""
        return frozenset(self.runs) - self.participation.placed

    @cached_property
    def _population(self) -> NDArray[np.int64]:
        groups = self.participation.groups
        return np.array([group.population == "test" for group in groups], dtype=np.int64)

    @cached_property
    def _column(self) -> dict[str, int]:
        return {name: place for place, name in enumerate(self.runs)}

    @cached_property
    def _incidence(self) -> NDArray[np.float64]:
        """[groups, runs]: 1 where a run is in a group's history."""
        groups, column = self.participation.groups, self._column
        incidence = np.zeros((len(groups), len(column)))
        for place, group in enumerate(groups):
            incidence[place, [column[run] for run in group.runs if run in column]] = 1.0
        return incidence

    def _require(self, run: Run, known: NDArray[np.int64], new: NDArray[np.int64], caps: Sequence[Cap]) -> None:
        """``known`` [groups] and ``new`` [train, test] patients are asked for."""
        for cap in caps:
            able, able_new = self.affords(run, cap)
            if (known[~able] > 0).any() or (new[~able_new] > 0).any():
                raise BudgetError(
                    f"some of the patients that this run would include would pay more than the {cap.name}'s cap of "
                    f"epsilon {cap.epsilon:g} at delta {cap.delta:g}, with what they paid before",
                    code="VHT-BUDGET-CAP",
                    hint="ask for less epsilon, or ask the node's operator to raise the cap",
                )

    def _others(self, run: Run, cap: Cap) -> list[Run]:
        return [other for other in self.runs.values() if other.name != run.name and cap.covers(other)]

    def _group_curves(self, runs: Sequence[Run]) -> NDArray[np.float64]:
        """[groups, coordinates]: what the placed ones of ``runs`` cost each group."""
        curves = np.zeros((len(self.runs), 2, COORDINATES))
        for run in runs:
            curves[self._column[run.name]] = run.curves
        both = np.tensordot(self._incidence, curves, axes=1)
        costs: NDArray[np.float64] = both[np.arange(len(both)), self._population]
        return costs

    def _everybody(self, runs: Sequence[Run]) -> NDArray[np.float64]:
        """[2, coordinates]: what those of ``runs`` that may include anybody cost a patient of each population."""
        unplaced = [run.curves for run in runs if run.name in self._unplaced]
        return np.sum(unplaced, axis=0) if unplaced else np.zeros((2, COORDINATES))

    def _fits_as_planned(self, rule: RdpFilter, run: Run, others: Sequence[Run], place: int) -> bool:
        group = self.participation.groups[place]
        charged = [other for other in others if other.name in self._unplaced or other.name in group.runs]
        return _fits(rule, run, charged, group.population)


def _fits(rule: RdpFilter, run: Run, others: Sequence[Run], population: str) -> bool:
    """Where the filter refuses: plans of which nothing was drawn may still fit by their privacy loss distribution."""
    runs = (*others, run)
    drawn = touching([event for charged_run in runs for event in charged_run.drew], population)
    return not drawn and rule.fits(
        (), touching([event for charged_run in runs for event in charged_run.holds], population)
    )
