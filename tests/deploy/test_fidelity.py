"""A synthetic cohort beside real patients: distances of marginals, and a model trained on the one or the other."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from deploy.demo.fidelity import auc_when_trained_on, distances, last_records, marginals_of, read_synthetic
from deploy.demo.pooled_training import Learner
from synth.decode import decode
from synth.marginals import encode
from vht_federate.components.job import CohortArrays
from vht_federate.packaging.codebook import Codebook, codebook_for


@pytest.fixture(scope="module")
def learner() -> Learner:
    return Learner("cardio-risk", "angiography")


@pytest.fixture(scope="module")
def book(learner: Learner) -> Codebook:
    return Codebook.read(codebook_for(learner.component, learner.profile))


def written(folder: Path, book: Codebook, rows: int, seed: int) -> np.ndarray:
    """A released table of random cells, the outcome that of age above its middle bin; the cells."""
    rng = np.random.default_rng(seed)
    codes = np.stack([rng.integers(0, book.cells(name), rows) for name in book.order], axis=1)
    codes[:, -1] = codes[:, book.order.index("age")] >= 5
    folder.mkdir()
    table: pd.DataFrame = decode(book, codes, rng)
    table.to_parquet(folder / "data.parquet", index=False)
    return codes


def test_rows_that_were_released_are_read_back_into_the_cells_they_were_drawn_from(
    tmp_path: Path, learner: Learner, book: Codebook
) -> None:
    codes = written(tmp_path / "cohort", book, 400, 1)
    assert (encode(book, read_synthetic(tmp_path / "cohort", learner)) == codes).all()


def test_a_cohort_is_at_no_distance_from_itself_and_at_one_from_what_shares_no_cell(
    tmp_path: Path, learner: Learner, book: Codebook
) -> None:
    written(tmp_path / "cohort", book, 300, 2)
    rows = read_synthetic(tmp_path / "cohort", learner)
    same = distances(marginals_of(learner, [rows], rows))
    assert (same["tvd_mean"], same["tvd_worst"]) == (0.0, 0.0)
    age = book.order.index("age")
    young, old = rows.values.copy(), rows.values.copy()
    young[:, age], old[:, age] = book.columns["age"].edges[0], book.columns["age"].edges[-1]
    moved = [CohortArrays(values, rows.outcome, rows.patient, rows.bucket) for values in (young, old)]
    marginals = marginals_of(learner, [moved[0]], moved[1])
    apart = distances(marginals)
    assert (apart["tvd_worst_variable"], apart["tvd_worst"]) == ("age", 1.0)
    assert apart["tvd_mean"] == pytest.approx(1 / len(book.order))
    assert sum(marginals["age"]["real"]) == pytest.approx(1.0)


def test_a_quarter_of_the_patients_moved_is_a_distance_of_a_quarter(
    tmp_path: Path, learner: Learner, book: Codebook
) -> None:
    written(tmp_path / "cohort", book, 400, 3)
    rows = read_synthetic(tmp_path / "cohort", learner)
    outcome = np.zeros(400, dtype=np.float32)
    moved = outcome.copy()
    moved[:100] = 1
    pair = [CohortArrays(rows.values, labels, rows.patient, rows.bucket) for labels in (outcome, moved)]
    assert marginals_of(learner, [pair[0]], pair[1])[book.target]["tvd"] == 0.25


def test_a_model_learns_from_rows_what_the_rows_hold(tmp_path: Path, learner: Learner, book: Codebook) -> None:
    written(tmp_path / "one", book, 600, 4)
    written(tmp_path / "two", book, 300, 5)
    train, test = (read_synthetic(tmp_path / name, learner) for name in ("one", "two"))
    upside_down = CohortArrays(train.values, 1 - train.outcome, train.patient, train.bucket)
    right, wrong = (auc_when_trained_on(learner, [cohort], [test]) for cohort in (train, upside_down))
    assert right is not None
    assert wrong is not None
    assert right > 0.9 > 0.1 > wrong


def test_of_several_records_the_last_counts_with_the_patients_own_label() -> None:
    cohort = CohortArrays(
        np.array([[1.0], [2.0], [3.0]], dtype=np.float32), np.array([1, 0, 0], dtype=np.float32),
        np.array([0, 0, 2]), np.array([40, 41, 42], dtype=np.uint8),
    )  # fmt: skip
    last = last_records(cohort)
    assert last.values.ravel().tolist() == [2.0, 3.0]
    assert (last.outcome.tolist(), last.patient.tolist(), last.bucket.tolist()) == ([1.0, 0.0], [0, 1], [40, 42])
