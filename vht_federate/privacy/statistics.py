"""Counts, histograms, means and quantiles of patients, each one Gaussian release that the ledger can reserve.

A statistic is a frozen value: its public parameters fix its sensitivity and its event before any data is read. A
patient counts once, by the mean of its records, each clamped to public bounds first; records that are not finite are
left out, and a patient without any other contributes nothing. What is made of the noised numbers costs nothing more.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vht_federate.domain.budget import Population, PrivacyEvent
from vht_federate.errors import InputError
from vht_federate.privacy.noise import NoiseSource
from vht_federate.privacy.release import Private, release_gaussian

__all__ = ["Count", "Histogram", "Mean", "PatientValues", "Quantiles", "Statistic"]

Data = TypeVar("Data")
Result = TypeVar("Result")
Vector = NDArray[np.float64]
_MOST_LEVELS = 14


@dataclass(frozen=True, repr=False)
class PatientValues:
    """``values`` [records] of patients 0..patients-1; ``patient`` int64 [records] says whose each is."""

    values: Vector
    patient: NDArray[np.int64]
    patients: int

    def __repr__(self) -> str:
        return "PatientValues(redacted)"

    def means(self, lower: float, upper: float) -> Vector:
        """One value in [lower, upper] for each patient who has a finite record."""
        finite = np.isfinite(self.values)
        whose = self.patient[finite]
        clamped = np.clip(self.values[finite], lower, upper)
        sizes = np.bincount(whose, minlength=self.patients)
        sums = np.bincount(whose, weights=clamped - lower, minlength=self.patients)
        present = sizes > 0
        return np.clip(lower + sums[present] / sizes[present], lower, upper)


@dataclass(frozen=True)
class Statistic(ABC, Generic[Data, Result]):
    """``noise_multiplier``: standard deviation of the noise over ``l2_sensitivity``."""

    noise_multiplier: float

    def __post_init__(self) -> None:
        if not 0 < self.noise_multiplier < math.inf:
            raise InputError("a noise multiplier is positive and finite", code="VHT-INPUT-NOISE")

    @property
    @abstractmethod
    def l2_sensitivity(self) -> float:
        """By how much one patient more or less can move what is released, at most."""

    def event(self, population: Population) -> PrivacyEvent:
        """What the ledger is charged for one release, before noise is drawn."""
        label = type(self).__name__.lower()
        return PrivacyEvent(label=label, population=population, noise_multiplier=self.noise_multiplier)

    def release(self, data: Private[Data], noise: NoiseSource) -> Result:
        """The statistic of ``data`` with noise, once. Whoever calls has drawn ``event`` from the ledger."""
        exact: Private[ArrayLike] = data.map(self._exact)
        return self._read(release_gaussian(exact, self.l2_sensitivity, self.noise_multiplier, noise))

    @abstractmethod
    def _exact(self, held: Data) -> Vector: ...

    @abstractmethod
    def _read(self, noised: Vector) -> Result: ...


@dataclass(frozen=True)
class Count(Statistic[PatientValues, float]):
    """How many patients there are, with or without records."""

    @property
    def l2_sensitivity(self) -> float:
        return 1.0

    def _exact(self, held: PatientValues) -> Vector:
        return np.array([float(held.patients)])

    def _read(self, noised: Vector) -> float:
        return float(noised[0])


@dataclass(frozen=True)
class Histogram(Statistic[PatientValues, Vector]):
    """Patients by bin: edges[i] <= value < edges[i + 1], the last bin closed. Beyond the edges: the outer bins."""

    edges: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_rising(self.edges)

    @property
    def l2_sensitivity(self) -> float:
        return 1.0  # a patient is in one bin

    def _exact(self, held: PatientValues) -> Vector:
        values = held.means(self.edges[0], self.edges[-1])
        return np.histogram(values, bins=np.array(self.edges))[0].astype(np.float64)

    def _read(self, noised: Vector) -> Vector:
        return noised


@dataclass(frozen=True)
class Mean(Statistic[PatientValues, float]):
    """Mean over patients of values within [lower, upper]; the middle of the bounds where noise hides everybody."""

    lower: float
    upper: float

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_rising((self.lower, self.upper))

    @property
    def l2_sensitivity(self) -> float:
        return math.sqrt(2.0)  # 1 in the count, at most 1 in the sum of values scaled to [-1, 1]

    def _exact(self, held: PatientValues) -> Vector:
        scaled = (held.means(self.lower, self.upper) - self._middle) / self._half_width
        return np.array([np.clip(scaled, -1.0, 1.0).sum(), float(len(scaled))])

    def _read(self, noised: Vector) -> float:
        share = noised[0] / max(1.0, noised[1])
        return float(self._middle + self._half_width * np.clip(share, -1.0, 1.0))

    @property
    def _middle(self) -> float:
        return self.lower + self._half_width

    @property
    def _half_width(self) -> float:
        return (self.upper - self.lower) / 2


@dataclass(frozen=True)
class Quantiles(Statistic[PatientValues, Vector]):
    """Quantiles at ``probabilities`` of values within [lower, upper], to (upper - lower) / 2^levels.

    Counts of patients in 2, 4, …, 2^levels equal bins and in all are released together (Hay et al. 2010): a patient
    is in one bin of each, and a cumulative count needs one bin of each at most.
    """

    lower: float
    upper: float
    probabilities: tuple[float, ...]
    levels: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_rising((self.lower, self.upper))
        if not (1 <= self.levels <= _MOST_LEVELS and self.probabilities):
            raise InputError(f"1 to {_MOST_LEVELS} levels and at least one probability", code="VHT-INPUT-STATISTIC")
        if not all(0 <= probability <= 1 for probability in self.probabilities):
            raise InputError("probabilities lie in [0, 1]", code="VHT-INPUT-STATISTIC")

    @property
    def l2_sensitivity(self) -> float:
        return math.sqrt(self.levels + 1)

    def _exact(self, held: PatientValues) -> Vector:
        share = (held.means(self.lower, self.upper) - self.lower) / (self.upper - self.lower)
        finest = 1 << self.levels
        leaf = np.bincount(np.minimum((share * finest).astype(np.int64), finest - 1), minlength=finest)
        counts = [leaf.reshape(1 << level, -1).sum(axis=1) for level in range(self.levels + 1)]
        return np.concatenate(counts).astype(np.float64)

    def _read(self, noised: Vector) -> Vector:
        counts = np.split(noised, np.cumsum([1 << level for level in range(self.levels)]))
        finest = 1 << self.levels
        upto = np.zeros(finest + 1)  # patients below each edge of the finest bins
        for edge in range(1, finest + 1):
            upto[edge] = sum(
                float(counts[level][(edge >> (self.levels - level)) - 1])
                for level in range(self.levels + 1)
                if (edge >> (self.levels - level)) & 1
            )
        rising = np.maximum.accumulate(upto)
        wanted = np.array(self.probabilities) * rising[-1]
        bin_ = np.clip(np.searchsorted(rising, wanted, side="left"), 1, finest) - 0.5
        quantiles: Vector = self.lower + (self.upper - self.lower) * bin_ / finest
        return quantiles


def _check_rising(edges: tuple[float, ...]) -> None:
    if len(edges) < 2 or not np.isfinite(edges).all() or not (np.diff(edges) > 0).all():
        raise InputError("bounds and edges are finite, at least two, and rise", code="VHT-INPUT-STATISTIC")
