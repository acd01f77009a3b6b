"""From noisy tables to a sealed cohort: one fit and one report for all tests of this file."""

import json
from dataclasses import replace
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from kit.marginal_visits import BOOK, CONTRACT, PROFILE, RAW, random_cohort, visit
from safetensors.numpy import load_file, save

from synth.adaptive_selection import choose_pairs
from synth.cohort import make_cohort
from synth.decode import decode
from synth.marginal_sums import NoisyTable
from synth.marginals import encode, marginals, one_way_tables, tables_of, two_way_tables
from synth.quality import Score, gate, simplex
from synth.synthesizer import Model, fit, loss_of, rooted, sample
from synth.two_way_tables import target_pairs
from vht_federate.central.row_detection.cohorts import look_at_cohort
from vht_federate.components.job import CohortArrays, JobCall
from vht_federate.errors import CohortError, InputError, VerificationError
from vht_federate.packaging.codebook import Codebook, Column
from vht_federate.packaging.cohort import CohortRequest, CohortResult, verify_cohort
from vht_federate.packaging.statement import read_statement
from vht_federate.privacy.accounting import epsilon
from vht_federate.privacy.statement import privacy_statement
from vht_federate.signing.keys import SigningKey

KEY = SigningKey.generate()
PATIENTS = 3000


@pytest.fixture(scope="module")
def cohorts() -> dict[str, CohortArrays]:
    rng = np.random.default_rng(11)
    return {f"hospital-{number}": random_cohort(rng, PATIENTS) for number in (1, 2)}


@pytest.fixture(scope="module")
def request_(cohorts: dict[str, CohortArrays], tmp_path_factory: pytest.TempPathFactory) -> CohortRequest:
    visits = {name: visit(cohort, seed=seed) for seed, (name, cohort) in enumerate(cohorts.items())}
    one_way = {name: save(dict(marginals(data, JobCall("marginals", 1)).tensors)) for name, data in visits.items()}
    call = JobCall("marginals", 2, {"pairs": choose_pairs(RAW, one_way)})
    two_way = {name: save(dict(marginals(data, call).tensors)) for name, data in visits.items()}
    plan = next(iter(visits.values())).plan
    return CohortRequest(
        study_id="study-1",
        permit_id="permit-1",
        component=CONTRACT,
        component_digest="0" * 64,
        profile=PROFILE,
        plan=plan,
        codebook=RAW,
        one_way=one_way,
        two_way=two_way,
        statement=privacy_statement(plan, {name: plan.events() for name in visits}),
        created_at=datetime(2026, 6, 1, tzinfo=UTC),
        out=tmp_path_factory.mktemp("made") / "cohort",
        key=KEY,
    )


@pytest.fixture(scope="module")
def cohort_result(request_: CohortRequest) -> CohortResult:
    return make_cohort(request_)


def shares(codes: np.ndarray, pair: tuple[int, int]) -> np.ndarray:
    shape = tuple(BOOK.cells(BOOK.order[index]) for index in pair)
    counted = np.bincount(np.ravel_multi_index(codes[:, pair].T, shape), minlength=int(np.prod(shape)))
    return counted / len(codes)


def read_back(table: pd.DataFrame) -> np.ndarray:
    """The cells of a table's values, through the same encoding that nodes use."""
    columns = []
    for port in CONTRACT.inputs(PROFILE):
        cells = table[port.name]
        numbers = cells.map(port.categories.index, na_action="ignore") if port.kind == "category" else cells
        columns.append(numbers.astype("Float64").to_numpy(dtype=np.float32, na_value=np.nan))
    rows = len(table)
    outcome = table[BOOK.target].astype(int).to_numpy(dtype=np.float32)
    arrays = CohortArrays(np.stack(columns, axis=1), outcome, np.arange(rows), np.full(rows, 99, np.uint8))
    return encode(BOOK, arrays)


def test_the_cohort_keeps_the_two_way_tables_of_the_patients(
    cohort_result: CohortResult, cohorts: dict[str, CohortArrays]
) -> None:
    real = np.concatenate([encode(BOOK, cohort) for cohort in cohorts.values()])
    synthetic = read_back(pd.read_parquet(cohort_result.folder / "data.parquet"))
    pairs = list(combinations(range(len(BOOK.order)), 2))
    distances = [0.5 * np.abs(shares(real, pair) - shares(synthetic, pair)).sum() for pair in pairs]
    assert cohort_result.rows == pytest.approx(2 * PATIENTS, rel=0.05)
    assert np.mean(distances) < 0.08
    assert max(distances) < 0.3


def test_a_model_trained_on_the_cohort_ranks_real_patients(
    cohort_result: CohortResult, cohorts: dict[str, CohortArrays]
) -> None:
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score

    synthetic = read_back(pd.read_parquet(cohort_result.folder / "data.parquet"))
    real = np.concatenate([encode(BOOK, cohort) for cohort in cohorts.values()])
    fitted = LogisticRegression(max_iter=1000).fit(synthetic[:, :-1] / 10, synthetic[:, -1])
    own = LogisticRegression(max_iter=1000).fit(real[:, :-1] / 10, real[:, -1])
    reached = roc_auc_score(real[:, -1], fitted.predict_proba(real[:, :-1] / 10)[:, 1])
    best = roc_auc_score(real[:, -1], own.predict_proba(real[:, :-1] / 10)[:, 1])
    assert best - reached < 0.03


def test_csv_and_parquet_hold_the_same_table_in_the_codebook_s_order(cohort_result: CohortResult) -> None:
    written, parquet = (
        pd.read_csv(cohort_result.folder / "data.csv"),
        pd.read_parquet(cohort_result.folder / "data.parquet"),
    )
    assert tuple(written.columns) == tuple(parquet.columns) == BOOK.order
    assert len(written) == len(parquet) == cohort_result.rows
    for name in BOOK.order:
        assert (written[name].isna() == parquet[name].isna()).all()
    assert "43.0" not in (cohort_result.folder / "data.csv").read_text().splitlines()[1].split(",")[0]


def test_every_fhir_resource_of_the_first_patients_validates_and_is_marked(cohort_result: CohortResult) -> None:
    from fhir.resources.R4B import get_fhir_model_class

    for path in sorted((cohort_result.folder / "fhir").glob("*.ndjson")):
        lines = path.read_text().splitlines()
        for line in lines[:300]:
            get_fhir_model_class(path.stem).model_validate_json(line)
        for line in lines:
            meta = json.loads(line)["meta"]
            assert meta["security"][0]["code"] == "HTEST"
            assert meta["tag"][0] == {"system": "urn:vht:tag", "code": "synthetic"}
    patients = (cohort_result.folder / "fhir/Patient.ndjson").read_text().splitlines()
    assert len(patients) == cohort_result.rows


def test_the_platform_s_look_at_rows_accepts_what_the_maker_writes(cohort_result: CohortResult) -> None:
    look_at_cohort(cohort_result.folder, BOOK, cohort_result.rows)


def test_sdmetrics_scores_are_there_for_every_column_and_pair_and_none_is_missing(cohort_result: CohortResult) -> None:
    report = json.loads((cohort_result.folder / "sdmetrics_report.json").read_text())
    assert len(report["columns"]) == len(BOOK.order)
    assert len(report["pairs"]) == 2 * len(BOOK.inputs) - 1
    for row in (*report["columns"], *report["pairs"]):
        assert 0 <= row["score"] <= 1
        assert 0 <= row["expected"] <= 1
        assert row["holds"] is (None if row["columns"] in report["noise_dominated"] else True)
    assert report["diagnostic"] == {"Data Validity": 1.0, "Data Structure": 1.0}
    assert report["worst_column"]["score"] == min(row["score"] for row in report["columns"])
    assert "no real row" in report["reference"]


def test_sdv_reads_the_metadata_and_finds_the_table_valid(cohort_result: CohortResult) -> None:
    from sdv.metadata import Metadata

    metadata = Metadata.load_from_json(cohort_result.folder / "sdv_metadata.json")
    metadata.validate()
    metadata.validate_data({"cohort": pd.read_parquet(cohort_result.folder / "data.parquet")})


def test_the_statement_names_the_cohort_s_own_share(cohort_result: CohortResult, request_: CohortRequest) -> None:
    statement = read_statement(json.loads((cohort_result.folder / "privacy_statement.json").read_text()))
    events = (*request_.plan.events_of("marginals", 1), *request_.plan.events_of("marginals", 2))
    assert statement.release is not None
    assert statement.release.epsilon == cohort_result.epsilon == epsilon(events, request_.plan.delta)
    assert statement.release.epsilon < statement.epsilon
    card = (cohort_result.folder / "data_card.md").read_text()
    assert f"{cohort_result.rows:,} rows" in card
    assert f"epsilon {cohort_result.epsilon:.3g}" in card


def test_the_seal_covers_every_file_and_the_same_tables_give_the_same_rows(
    cohort_result: CohortResult, request_: CohortRequest, tmp_path: Path
) -> None:
    sealed = verify_cohort(cohort_result.folder, KEY.public)
    assert sealed.sha256 == cohort_result.sha256
    assert sealed.manifest["synthetic"] is True
    assert set(sealed.manifest["tables_sha256"]["1"]) == {"hospital-1", "hospital-2"}
    again = make_cohort(replace(request_, out=tmp_path / "again"))
    assert (again.folder / "data.csv").read_bytes() == (cohort_result.folder / "data.csv").read_bytes()
    assert load_file(again.folder / "marginals.safetensors")["one-way/age"].shape == (11,)
    (again.folder / "data.csv").write_text("age\n1\n")
    with pytest.raises(VerificationError, match=r"data\.csv"):
        verify_cohort(again.folder, KEY.public)


def test_a_node_lost_before_round_two_leaves_a_usable_cohort(request_: CohortRequest, tmp_path: Path) -> None:
    fewer = {"hospital-1": request_.two_way["hospital-1"]}
    cohort = make_cohort(replace(request_, two_way=fewer, out=tmp_path / "fewer"))
    assert cohort.rows == pytest.approx(2 * PATIENTS, rel=0.05)


def test_no_tables_and_a_full_folder_are_refused(request_: CohortRequest, tmp_path: Path) -> None:
    with pytest.raises(CohortError):
        make_cohort(replace(request_, two_way={}, out=tmp_path / "none"))
    (tmp_path / "file").touch()
    with pytest.raises(InputError):
        make_cohort(replace(request_, out=tmp_path))


# --- pieces -------------------------------------------------------------------------------------------------------


def test_decoding_gives_values_that_encode_to_the_same_cells() -> None:
    rng = np.random.default_rng(5)
    codes = np.stack([rng.integers(0, BOOK.cells(name), 2000) for name in BOOK.order], axis=1)
    assert (read_back(decode(BOOK, codes, rng)) == codes).all()


NAMES = ("age", "sbp", "smoker", "y")
QUANTITY = Column(kind="quantity", unit="1", edges=(0, 1, 2, 3, 4))
SMALL = Codebook(
    component="c",
    version="1",
    profile="p",
    order=NAMES,
    target="y",
    columns={
        "age": QUANTITY,
        "sbp": QUANTITY,
        "smoker": Column(kind="boolean", levels=("false", "true")),
        "y": Column(kind="boolean", levels=("false", "true"), missing=False),
    },
)
SMALL_PAIRS = [("age", "sbp"), ("age", "smoker"), ("age", "y"), ("sbp", "y"), ("smoker", "y")]


def small_tables(noise: float) -> tuple[list[NoisyTable], float]:
    """Tables of 500 people who follow a model of this very form, with noise in every cell."""
    rng = np.random.default_rng(2)
    age = rng.integers(0, 5, 500)
    y = (rng.random(500) < 0.1 + 0.15 * age).astype(int)
    sbp = np.clip(age + rng.integers(-1, 2, 500), 0, 4)
    smoker = (rng.random(500) < 0.2 + 0.1 * y).astype(int)
    codes = np.stack([age, sbp, smoker, y], axis=1)
    wanted = [*one_way_tables(SMALL), *two_way_tables(SMALL, SMALL_PAIRS)]
    counted = [tables_of(codes, [table]).reshape(table.shape) for table in wanted]
    tables = [
        NoisyTable(table, counts + noise * rng.standard_normal(counts.shape), noise or 1.0)
        for table, counts in zip(wanted, counted, strict=True)
    ]
    return tables, 500.0


def test_a_fit_to_tables_without_noise_returns_them() -> None:
    tables, total = small_tables(0.0)
    model = fit(SMALL, tables, total)
    assert loss_of(SMALL, model, tables) < 0.5
    assert model.root.sum() == pytest.approx(500)
    assert all(table.sum() == pytest.approx(500) and table.min() >= 0 for _, _, table in model.links)


def test_a_fit_to_noisy_tables_reaches_the_optimum_that_a_general_solver_finds() -> None:
    import warnings

    import jax

    jax.config.update("jax_enable_x64", True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mbi
    tables, total = small_tables(8.0)
    names = [tuple(NAMES[index] for index in table.table.columns) for table in tables]
    measured = [
        mbi.LinearMeasurement(table.counts.ravel(), clique, table.stddev)
        for table, clique in zip(tables, names, strict=True)
    ]
    domain = mbi.Domain(NAMES, [SMALL.cells(name) for name in NAMES])
    peer = mbi.estimation.MirrorDescent().estimate(domain, measured, known_total=total, iters=1000)
    reached = sum(
        0.5 * float(((np.asarray(peer.project(clique).datavector()) - table.counts.ravel()) ** 2).sum()) / 64
        for table, clique in zip(tables, names, strict=True)
    )
    assert loss_of(SMALL, fit(SMALL, tables, total), tables) == pytest.approx(reached, rel=1e-3)


def test_sampling_follows_the_model_and_survives_cells_without_mass() -> None:
    rng = np.random.default_rng(0)
    tree = [(BOOK.inputs[index], BOOK.inputs[index + 1]) for index in range(len(BOOK.inputs) - 1)]
    links = tuple((a, b, np.zeros((2, BOOK.cells(a), BOOK.cells(b)))) for a, b in rooted(tree, BOOK.inputs[0]))
    for _, _, table in links:
        table[0, 0, 1] = 1.0
    root = np.zeros((2, BOOK.cells("age")))
    root[0, 2], root[1, 3] = 30, 10
    codes = sample(BOOK, Model("age", root, links), 400, rng)
    assert np.bincount(codes[:, -1]).tolist() == [300, 100]
    assert set(codes[codes[:, -1] == 1, 0]) == {3}
    assert set(codes[:, 1]) == {1}


def test_the_tree_is_walked_from_its_root_outwards() -> None:
    edges = rooted([("c", "d"), ("a", "b"), ("b", "c")], "b")
    reached = {"b"}
    for parent, child in edges:
        assert parent in reached
        reached.add(child)
    assert reached == {"a", "b", "c", "d"}
    assert len(target_pairs(BOOK)) == len(BOOK.inputs)


def test_the_gate_refuses_the_worst_and_every_nan() -> None:
    good = Score(("age",), "TVComplement", 0.9, 0.95).row()
    report = {"columns": [good], "pairs": [good], "diagnostic": {"Data Validity": 1.0, "Data Structure": 1.0}}
    gate(report)
    for bad in (Score(("age", "x"), "c", 0.7, 0.95).row(), Score(("age", "x"), "c", float("nan"), 0.95).row()):
        with pytest.raises(CohortError, match="age and x"):
            gate({**report, "pairs": [good, bad]})
    with pytest.raises(CohortError, match="Data Validity"):
        gate({**report, "diagnostic": {"Data Validity": None}})


def test_a_table_that_noise_dominates_is_judged_by_nobody() -> None:
    swamped = Score(("age", "x"), "c", 0.9, 0.95, swamped=True)
    assert (swamped.noise_dominated, swamped.row()["holds"]) == (True, None)
    assert Score(("age", "x"), "c", 0.9, 0.95).row()["holds"] is True  # the control
    perfect = {"Data Validity": 1.0, "Data Structure": 1.0}
    gate({"columns": [], "pairs": [swamped.row()], "diagnostic": perfect})


def test_the_nearest_table_has_no_negative_cell_and_the_right_total() -> None:
    noisy = np.array([[120.0, -30.0], [5.0, 40.0]])
    nearest = simplex(noisy, 100.0)
    assert nearest.min() >= 0
    assert nearest.sum() == pytest.approx(100)
    assert nearest[0, 0] > nearest[1, 1] > nearest[1, 0]
