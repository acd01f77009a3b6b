"""How well scores tell patients with the outcome from those without: area under the curve and calibration, with noise.

One Gaussian release of a histogram by outcome and score is all that touches patients: a patient is in one cell. The
curves are made of the noised cells and cost nothing more.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from vht_federate.errors import InputError
from vht_federate.privacy.statistics import Statistic

__all__ = ["CalibrationPoint", "PatientScores", "ScoreHistogram", "ScoreTable", "area_under_curve"]

Vector = NDArray[np.float64]
_MOST_BINS = 1000
_TURNS = 30


@dataclass(frozen=True, repr=False)
class PatientScores:
    """``scores`` [patients] in [0, 1], one that is not finite counts as 0; ``outcome`` [patients], 0 or 1."""

    scores: Vector
    outcome: NDArray[np.int64]

    def __repr__(self) -> str:
        return "PatientScores(redacted)"


@dataclass(frozen=True)
class CalibrationPoint:
    """Patients with scores in [low, high): ``observed`` share with the outcome, off by noise by at most ``radius``.

    Both are None where noise hides how many patients there are.
    """

    low: float
    high: float
    patients: float
    observed: float | None
    radius: float | None


@dataclass(frozen=True)
class ScoreTable:
    """Noised numbers of patients by score, in equal bins of [0, 1]. ``noise``: standard deviation in each cell."""

    negatives: tuple[float, ...]
    positives: tuple[float, ...]
    noise: float

    def area(self) -> float:
        """Area under the ROC curve of the binned scores; half a pair's weight for a tie. Clamped to [0, 1].

        Binning moves the exact area by at most half the share of pairs (with, without) that meet in one bin.
        """
        return area_under_curve(self.positives, self.negatives)

    def area_radius(self, confidence: float = 0.95) -> float:
        """By how much noise can have moved ``area``, at most, with ``confidence`` over the noise alone; 1.0: no bound.

        With A the area without noise, p and n the counts, e and d their noises and hats for noised numbers, the error
        times (sum p^)(sum n^) is sum_b e_b (c_b - A N) + sum_a d_a (r_a - A P) + sum_b e_b h_b: c_b are negatives
        below bin b, r_a positives above bin a (half of the bin itself), h_b the noise of c_b - A N. Every normal in it
        stays below t standard deviations at once; what these depend on is bounded by noised numbers and by the radius
        itself, which therefore starts at 1 and is made smaller by turns, each a valid bound.
        """
        up, down = np.array(self.positives), np.array(self.negatives)
        positives, negatives, bins = float(up.sum()), float(down.sum()), len(up)
        if min(positives, negatives) <= 0:
            return 1.0
        deviations = _deviations(confidence, 2 * bins + 4)
        each = deviations * self.noise * bins**0.5  # the most that noise moves a sum over bins
        area, radius = self.area(), 1.0
        below = np.abs(np.cumsum(down) - down / 2 - area * negatives)
        above = np.abs(positives - np.cumsum(up) + up / 2 - area * positives)
        for _ in range(_TURNS):
            most = min(1.0, max(area, 1.0 - area) + radius)
            weights = [
                np.minimum(seen + radius * total + each * most, (total + each) * most)
                for seen, total in ((below, negatives), (above, positives))
            ]
            single = deviations * self.noise * float(np.linalg.norm(np.concatenate(weights)))
            error = single + each * each * most
            radius = min(radius, error / (positives * negatives))
        return radius

    def calibration(self, confidence: float = 0.95) -> list[CalibrationPoint]:
        """One point a bin; all radii hold together with ``confidence``."""
        bins = len(self.positives)
        largest_deviation = _deviations(confidence, 2 * bins) * self.noise
        points = []
        for place, (up, down) in enumerate(zip(self.positives, self.negatives, strict=True)):
            patients, low, high = up + down, place / bins, (place + 1) / bins
            if patients <= largest_deviation:
                points.append(CalibrationPoint(low, high, patients, None, None))
            else:
                share = float(np.clip(up / patients, 0.0, 1.0))
                points.append(CalibrationPoint(low, high, patients, share, min(1.0, largest_deviation / patients)))
        return points


@dataclass(frozen=True)
class ScoreHistogram(Statistic[PatientScores, ScoreTable]):
    """Patients by outcome and by score in ``bins`` equal bins of [0, 1]."""

    bins: int = 20

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 2 <= self.bins <= _MOST_BINS:
            raise InputError(f"2 to {_MOST_BINS} bins of scores", code="VHT-INPUT-STATISTIC")

    @property
    def l2_sensitivity(self) -> float:
        return 1.0  # a patient is in one cell

    def _exact(self, held: PatientScores) -> Vector:
        scores = np.clip(np.nan_to_num(held.scores, nan=0.0, posinf=0.0, neginf=0.0), 0.0, 1.0)
        place = np.minimum((scores * self.bins).astype(np.int64), self.bins - 1)
        cell = self.bins * (held.outcome > 0) + place
        return np.bincount(cell, minlength=2 * self.bins).astype(np.float64)

    def _read(self, noised: Vector) -> ScoreTable:
        cells = noised.tolist()
        return ScoreTable(tuple(cells[: self.bins]), tuple(cells[self.bins :]), self.noise_multiplier)


def area_under_curve(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """P(score of a positive > score of a negative), ties half (Mann-Whitney). 0.5 where a class is empty.

    Noise can make a cell negative; emptying it would pull every noisy area towards one half, so it stays.
    """
    up, down = np.asarray(positives, dtype=np.float64), np.asarray(negatives, dtype=np.float64)
    if up.sum() <= 0 or down.sum() <= 0:
        return 0.5
    up, down = up / up.sum(), down / down.sum()
    below = np.concatenate([[0.0], np.cumsum(down)[:-1]])
    return float(np.clip((up * (below + down / 2)).sum(), 0.0, 1.0))


def _deviations(confidence: float, terms: int) -> float:
    """How many standard deviations none of ``terms`` normals exceeds, with ``confidence``."""
    if not 0.0 < confidence < 1.0:
        raise InputError("a confidence lies strictly between 0 and 1", code="VHT-INPUT-STATISTIC")
    return NormalDist().inv_cdf(1.0 - (1.0 - confidence) / (2 * terms))
