"""What an enclave hands to a job, and what it takes back.

A job is ``def job(data: VisitData, call: JobCall) -> JobReply``, found through the entry-point group
``vht.enclave_jobs`` under its name. Rules the enclave enforces:

- Check the call first. The first use of ``data.noise`` (a sample or noise) begins the round: the permit is checked
  again and the round's planned events are drawn from the ledger. A job that raises before that spends nothing.
- The only way out of ``data.cohort`` is ``release_gaussian``. A reply for which no noise was drawn is refused.
- ``result`` is JSON without NaN; ``tensors`` are finite arrays. Both are public from here on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from vht_federate.components.contract import Component
from vht_federate.domain.budget import Population
from vht_federate.domain.plan import StudyPlan
from vht_federate.domain.split import TEST_BUCKETS
from vht_federate.privacy.noise import NoiseSource
from vht_federate.privacy.release import Private

__all__ = ["CohortArrays", "Job", "JobCall", "JobReply", "VisitData"]


@dataclass(frozen=True, repr=False)
class CohortArrays:
    """A cohort's tensors, patient-major. Reached only inside ``Private.map``.

    ``values`` float32: clinical units, booleans 0/1, categories by index, columns in the order of
    ``component.inputs(profile)``. By the profile's layout: tabular [records, inputs], NaN where missing; repeated and
    sequence [records, steps, inputs], 0 where missing, oldest step first, with ``mask`` uint8 (1: known) and ``times``
    float32 (days before the record's index day) of the same shape.
    ``outcome`` float32 [records], 0/1. ``patient`` int64 [records], non-decreasing, 0..patients-1. ``bucket`` uint8
    [patients], the public split.
    """

    values: NDArray[np.float32]
    outcome: NDArray[np.float32]
    patient: NDArray[np.int64]
    bucket: NDArray[np.uint8]
    mask: NDArray[np.uint8] | None = None
    times: NDArray[np.float32] | None = None

    @property
    def patients(self) -> int:
        return len(self.bucket)

    def of(self, population: Population) -> "CohortArrays":
        """Only the patients of ``population``, renumbered from 0."""
        if population == "all":
            return self
        test = self.bucket < TEST_BUCKETS
        keep = test if population == "test" else ~test
        renumbered = np.cumsum(keep) - 1
        rows = keep[self.patient]
        return CohortArrays(
            self.values[rows],
            self.outcome[rows],
            renumbered[self.patient[rows]].astype(np.int64),
            self.bucket[keep],
            None if self.mask is None else self.mask[rows],
            None if self.times is None else self.times[rows],
        )

    def model_inputs(self) -> NDArray[np.float32]:
        """The one tensor a model is given: ``values``, or [records, 3, steps, inputs]: values, mask, times."""
        if self.mask is None or self.times is None:
            return self.values
        return np.stack([self.values, self.mask.astype(np.float32), self.times], axis=1)

    # What a patient is, of its records. A patient without any is in none of these: [patients with records].

    def labels(self) -> NDArray[np.int64]:
        """1 where the outcome of any record says so."""
        label = np.zeros(self.patients, dtype=np.int64)
        np.maximum.at(label, self.patient, (self.outcome > 0.5).astype(np.int64))
        return label[self._present()]

    def mean_by_patient(self, scores: NDArray[Any]) -> NDArray[np.float64]:
        """The mean over a patient's records of ``scores`` [records]; one that is not finite counts as 0."""
        finite = np.nan_to_num(scores.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        total = np.bincount(self.patient, weights=finite, minlength=self.patients)
        present = self._present()
        mean: NDArray[np.float64] = total[present] / np.bincount(self.patient, minlength=self.patients)[present]
        return mean

    def last_records(self) -> NDArray[np.int64]:
        """The index of each patient's last record: patient-major, so the last that was written."""
        last = np.zeros(self.patients, dtype=np.int64)
        last[self.patient] = np.arange(len(self.patient))
        return last[self._present()]

    def _present(self) -> NDArray[np.bool_]:
        return np.bincount(self.patient, minlength=self.patients) > 0

    def __repr__(self) -> str:
        return "CohortArrays(redacted)"


@dataclass(frozen=True)
class VisitData:
    """Everything a job may use.

    ``state`` lives as long as the enclave and is shared by its jobs; it is never logged. ``released`` holds the results
    of this visit's earlier calls, by (job, round): they are public, and survive a restart of the enclave.
    """

    component: Component
    profile: str
    plan: StudyPlan
    codebook: Mapping[str, Any] | None
    cohort: Private[CohortArrays]
    noise: NoiseSource
    build_model: Callable[[], Any]  # () -> torch.nn.Module of this component and profile
    state: dict[str, Any] = field(default_factory=dict, repr=False)
    released: Mapping[tuple[str, int], dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class JobCall:
    """One call, its tensors decoded. Untrusted: names, shapes and values are whatever the coordinator sent."""

    job: str
    round: int
    params: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, NDArray[Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class JobReply:
    """Public numbers and noise-protected tensors."""

    result: dict[str, Any]
    tensors: Mapping[str, NDArray[Any]] = field(default_factory=dict)


class Job(Protocol):
    def __call__(self, data: VisitData, call: JobCall) -> JobReply: ...
