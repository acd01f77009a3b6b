"""Area under the curve and calibration from one noised histogram: sensitivity, accuracy, cost."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vht_federate.errors import BudgetError, InputError
from vht_federate.privacy.ledger import Account
from vht_federate.privacy.noise import SecureNoise
from vht_federate.privacy.release import Private
from vht_federate.privacy.scores import PatientScores, ScoreHistogram, ScoreTable, area_under_curve
from vht_federate.testing import SeededNoise

QUIET = SeededNoise(0, scale=0.0)
odd = st.one_of(st.floats(0, 1), st.sampled_from([np.nan, np.inf, -np.inf, -3.0, 1e30, 1.0]))


def drawn(patients: int, seed: int) -> PatientScores:
    """Scores that are their own chance of the outcome: calibrated by construction."""
    rng = np.random.default_rng(seed)
    scores = rng.beta(2, 3, patients)
    return PatientScores(scores, (rng.random(patients) < scores).astype(np.int64))


def exact_area(held: PatientScores) -> float:
    up, down = held.scores[held.outcome == 1], held.scores[held.outcome == 0]
    return float(np.mean((up[:, None] > down) + 0.5 * (up[:, None] == down)))


def released(histogram: ScoreHistogram, held: PatientScores, noise=QUIET) -> ScoreTable:
    return histogram.release(Private(held), noise)


@given(st.lists(st.tuples(odd, st.integers(0, 1)), min_size=1, max_size=12), st.integers(2, 30))
def test_one_patient_moves_one_cell_by_one_whatever_its_score(patients: list[tuple[float, int]], bins: int) -> None:
    histogram = ScoreHistogram(1.0, bins)

    def cells(some: list[tuple[float, int]]) -> np.ndarray:
        patient_scores = PatientScores(
            np.array([s for s, _ in some], dtype=float), np.array([o for _, o in some], dtype=np.int64)
        )
        table = released(histogram, patient_scores)
        return np.array([*table.negatives, *table.positives])

    moved = np.abs(cells(patients) - cells(patients[:-1]))
    assert np.linalg.norm(moved) == histogram.l2_sensitivity == 1.0
    assert np.count_nonzero(moved) == 1


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**16), st.integers(2, 40))
def test_binning_moves_the_area_by_half_the_share_of_ties_at_most(seed: int, bins: int) -> None:
    patient_scores = drawn(300, seed)
    table = released(ScoreHistogram(1.0, bins), patient_scores)
    up, down = np.array(table.positives), np.array(table.negatives)
    ties = float((up * down).sum() / (up.sum() * down.sum()))
    assert abs(table.area() - exact_area(patient_scores)) <= ties / 2 + 1e-12


@pytest.mark.parametrize(("patients", "noise"), [(400, 1.0), (2000, 4.0), (20_000, 12.0)])
def test_noise_moves_the_area_by_no_more_than_its_radius_and_the_radius_says_something(
    patients: int, noise: float
) -> None:
    patient_scores = drawn(patients, 3)
    plain = released(ScoreHistogram(1.0), patient_scores).area()
    tables = [released(ScoreHistogram(noise), patient_scores, SecureNoise()) for _ in range(200)]
    missed = [abs(table.area() - plain) > table.area_radius(0.95) for table in tables]
    assert np.mean(missed) <= 0.05
    assert max(table.area_radius(0.95) for table in tables) < 0.15
    assert np.mean([abs(table.area() - plain) for table in tables]) < np.mean([t.area_radius() for t in tables])


def test_more_noise_and_fewer_patients_have_a_wider_radius_and_a_hidden_class_the_widest() -> None:
    base = ScoreTable((300.0, 100.0), (100.0, 300.0), 1.0)
    noisier = ScoreTable(base.negatives, base.positives, 3.0)
    fewer = ScoreTable((30.0, 10.0), (10.0, 30.0), 1.0)
    assert base.area_radius() < min(noisier.area_radius(), fewer.area_radius())
    assert base.area_radius(0.5) < base.area_radius(0.999)
    assert ScoreTable((5.0, 1.0), (-1.0, 0.5), 1.0).area_radius() == 1.0
    assert ScoreTable((5.0, 1.0), (-1.0, 0.5), 1.0).area() == 0.5


def test_calibrated_scores_lie_on_the_diagonal_within_their_radius() -> None:
    table = released(ScoreHistogram(8.0, 10), drawn(30_000, 5), SecureNoise())
    points = [point for point in table.calibration(0.999) if point.observed is not None]
    assert len(points) >= 8
    for point in points:
        statistical = 4 * np.sqrt(0.25 / point.patients)
        assert point.low - point.radius - statistical <= point.observed <= point.high + point.radius + statistical


def test_scores_that_are_too_high_are_seen() -> None:
    honest = drawn(30_000, 6)
    table = released(ScoreHistogram(8.0, 10), PatientScores(np.sqrt(honest.scores), honest.outcome), SecureNoise())
    assert any(p.observed is not None and p.observed + p.radius < p.low for p in table.calibration(0.999))


def test_a_bin_that_noise_hides_has_no_share() -> None:
    table = ScoreTable((1.0, 50.0), (2.0, 50.0), 4.0)
    hidden, seen = table.calibration()
    assert (hidden.observed, hidden.radius) == (None, None)
    assert seen.observed == 0.5


def test_the_ledger_reserves_and_refuses_them_like_any_release() -> None:
    histogram = ScoreHistogram(6.0)
    event = histogram.event("test")
    assert (event.noise_multiplier, event.steps, event.sampling_rate) == (6.0, 1, 1.0)
    account = Account(epsilon=0.7, delta=1e-5).reserve("v", [event]).draw("v", [event])
    with pytest.raises(BudgetError):
        account.reserve("w", [histogram.event("test")])


def test_nobody_has_no_curve() -> None:
    table = released(ScoreHistogram(1.0), PatientScores(np.zeros(0), np.zeros(0, dtype=np.int64)))
    assert table.area() == 0.5
    assert table.area_radius() == 1.0
    assert all(point.observed is None for point in table.calibration())


@pytest.mark.parametrize("bins", [0, 1, 1001])
def test_other_numbers_of_bins_are_refused(bins: int) -> None:
    with pytest.raises(InputError):
        ScoreHistogram(1.0, bins)


@pytest.mark.parametrize("confidence", [0.0, 1.0, -1.0])
def test_a_confidence_outside_its_range_is_refused(confidence: float) -> None:
    with pytest.raises(InputError):
        ScoreTable((1.0, 1.0), (1.0, 1.0), 1.0).calibration(confidence)


def test_scores_do_not_print_themselves() -> None:
    assert "0." not in repr(drawn(3, 1))


def test_the_area_of_equal_scores_is_one_half() -> None:
    assert area_under_curve([0, 7], [0, 9]) == 0.5
