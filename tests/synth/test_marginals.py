"""The marginals job and the choice of pairs: exact sensitivity, closed parameters, a tree that follows the data."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.marginal_visits import BOOK, CONTRACT, INPUTS, RAW, random_cohort, visit
from safetensors.numpy import load, save

from synth.adaptive_selection import choose_pairs
from synth.marginals import encode, marginals, one_way_tables, sketch_tables, tables_of, two_way_tables
from synth.two_way_tables import all_pairs, read_pairs, target_pairs
from vht_federate.components.job import CohortArrays, JobCall
from vht_federate.errors import RefusedError, WireError
from vht_federate.packaging.codebook import codebook_for
from vht_federate.testing.noise import SeededNoise

CHAIN = [list(pair) for pair in zip(BOOK.inputs, BOOK.inputs[1:], strict=False)]
PAIRS = [*CHAIN, *(list(pair) for pair in target_pairs(BOOK))]


def cohort_of(patients: list[list[tuple[list[float], int]]], buckets: list[int] | None = None) -> CohortArrays:
    """Patients as lists of (values, outcome)."""
    records = [(values, outcome, number) for number, patient in enumerate(patients) for values, outcome in patient]
    return CohortArrays(
        np.array([values for values, _, _ in records], dtype=np.float32).reshape(len(records), INPUTS),
        np.array([outcome for _, outcome, _ in records], dtype=np.float32),
        np.array([number for _, _, number in records], dtype=np.int64),
        np.array(buckets or [99] * len(patients), dtype=np.uint8),
    )


# --- sensitivity --------------------------------------------------------------------------------------------------

VALUE = st.one_of(st.floats(-1e6, 1e6, width=32), st.just(float("nan")), st.just(float("inf")))
RECORD = st.tuples(st.lists(VALUE, min_size=INPUTS, max_size=INPUTS), st.integers(0, 1))
PATIENT = st.lists(RECORD, min_size=1, max_size=3)


@settings(max_examples=40, deadline=None)
@given(st.lists(PATIENT, min_size=1, max_size=5), st.data())
def test_one_patient_moves_every_release_by_exactly_the_stated_sensitivity(
    patients: list[list[tuple[list[float], int]]], data: st.DataObject
) -> None:
    gone = data.draw(st.integers(0, len(patients) - 1))
    fewer = patients[:gone] + patients[gone + 1 :]
    for tables in (one_way_tables(BOOK), sketch_tables(BOOK), two_way_tables(BOOK, read_pairs(BOOK, PAIRS))):
        whole = tables_of(encode(BOOK, cohort_of(patients)), tables)
        less = tables_of(encode(BOOK, cohort_of(fewer)), tables)
        assert np.linalg.norm(whole - less) == pytest.approx(np.sqrt(len(tables)))
        assert whole.sum() == len(patients) * len(tables)


def test_a_patient_counts_once_with_its_last_record_and_its_worst_outcome() -> None:
    early, late = [40.0] * INPUTS, [60.0] * INPUTS
    codes = encode(BOOK, cohort_of([[(early, 1), (late, 0)]]))
    assert codes.shape == (1, len(BOOK.order))
    assert BOOK.columns["age"].labels[codes[0, 0]] == "[55, 62)"
    assert codes[0, -1] == 1


@pytest.mark.parametrize(("age", "label"), [(20, "[20, 27)"), (26.99, "[20, 27)"), (27, "[27, 34)"), (90, "[83, 90)")])
def test_bins_are_right_open_and_their_ends_are_closed(age: float, label: str) -> None:
    for value in (age, age - 1000 if age == 20 else age, age + 1000 if age == 90 else age):
        codes = encode(BOOK, cohort_of([[([value] + [0.0] * (INPUTS - 1), 0)]]))
        assert BOOK.columns["age"].labels[codes[0, 0]] == label


def test_missing_values_have_a_cell_of_their_own_and_absent_conditions_are_no() -> None:
    codes = encode(BOOK, cohort_of([[([float("nan")] * INPUTS, 0)]]))
    labels = {name: BOOK.columns[name].labels[codes[0, index]] for index, name in enumerate(BOOK.order)}
    assert labels["age"] == labels["smoker"] == "missing"
    assert labels["diabetes"] == labels["antihypertensive"] == "false"


# --- the job ------------------------------------------------------------------------------------------------------


def test_both_rounds_release_exactly_their_tables_over_the_planned_population_only() -> None:
    rng = np.random.default_rng(0)
    cohort = random_cohort(rng, 200)
    mixed = CohortArrays(cohort.values, cohort.outcome, cohort.patient, np.arange(200, dtype=np.uint8) % 100)
    first = marginals(visit(mixed, scale=0), JobCall("marginals", 1))
    assert first.result == {"tables": len(first.tensors)} == {"tables": 12 + 66}
    train = 2 * 67
    assert {float(table.sum()) for table in first.tensors.values()} == {train}
    second = marginals(visit(mixed, scale=0), JobCall("marginals", 2, {"pairs": PAIRS}))
    assert set(second.tensors) == {f"pair/{a}|{b}" for a, b in PAIRS}
    assert {float(table.sum()) for table in second.tensors.values()} == {train}


def test_the_noise_has_the_planned_scale_times_the_root_of_the_number_of_tables() -> None:
    cohort = random_cohort(np.random.default_rng(0), 50)
    calls = {
        "one-way/": (JobCall("marginals", 1), 2 * np.sqrt(12)),
        "sketch/": (JobCall("marginals", 1), 3 * np.sqrt(66)),
        "pair/": (JobCall("marginals", 2, {"pairs": PAIRS}), 5 * np.sqrt(21)),
    }
    for prefix, (call, scale) in calls.items():
        exact, noisy = marginals(visit(cohort, scale=0), call).tensors, marginals(visit(cohort), call).tensors
        drawn = np.concatenate([(noisy[name] - exact[name]).ravel() for name in exact if name.startswith(prefix)])
        assert drawn.std() == pytest.approx(scale, rel=4 / np.sqrt(2 * drawn.size))


def swap(pairs: list[list[str]]) -> list[list[str]]:
    return [pairs[0][::-1], *pairs[1:]]


@pytest.mark.parametrize(
    "call",
    [
        JobCall("marginals", 1, {"pairs": PAIRS}),
        JobCall("marginals", 2),
        JobCall("marginals", 3),
        JobCall("marginals", 1, {}, {"weights": np.zeros(3)}),
        JobCall("marginals", 2, {"pairs": PAIRS, "more": 1}),
        JobCall("marginals", 2, {"pairs": "age"}),
        JobCall("marginals", 2, {"pairs": PAIRS[:-1]}),
        JobCall("marginals", 2, {"pairs": [*PAIRS, PAIRS[0]]}),
        JobCall("marginals", 2, {"pairs": [PAIRS[1], *PAIRS[1:]]}),
        JobCall("marginals", 2, {"pairs": swap(PAIRS)}),
        JobCall("marginals", 2, {"pairs": [["age", "name"], *PAIRS[1:]]}),
        JobCall("marginals", 2, {"pairs": [["age", "systolic_bp"], *PAIRS[1:-1], PAIRS[0]]}),
        JobCall("marginals", 2, {"pairs": [["age"], *PAIRS[1:]]}),
        JobCall("marginals", 2, {"pairs": [[1, 2], *PAIRS[1:]]}),
        JobCall("marginals", 2, {"pairs": [["age", "systolic_bp"], PAIRS[0], PAIRS[1], *PAIRS[3:]]}),  # a cycle
    ],
)
def test_a_call_that_the_plan_does_not_foresee_is_refused_before_any_noise(call: JobCall) -> None:
    class Silent(SeededNoise):
        def gaussian(self, shape: tuple[int, ...]) -> Any:  # noqa: ARG002
            raise AssertionError("noise was drawn")

    with pytest.raises(RefusedError):
        marginals(visit(random_cohort(np.random.default_rng(0), 5), noise=Silent(0)), call)


@pytest.mark.parametrize(
    "codebook",
    [
        None,
        {},
        {**RAW, "columns": {**RAW["columns"], "age": {**RAW["columns"]["age"], "edges": [20.0, 20.001, 90.0]}}},
        codebook_for(CONTRACT, "angiography"),
    ],
)
def test_a_codebook_other_than_the_component_s_is_refused(codebook: Any) -> None:
    with pytest.raises(RefusedError) as caught:
        marginals(visit(cohort_of([[([1.0] * INPUTS, 0)]]), codebook=codebook), JobCall("marginals", 1))
    assert caught.value.code == "VHT-REFUSED-CODEBOOK"


# --- choosing -----------------------------------------------------------------------------------------------------


def replies(count: int, patients: int, scale: float = 1.0) -> dict[str, bytes]:
    rng = np.random.default_rng(3)
    visits = {f"h{seed}": visit(random_cohort(rng, patients), seed=seed, scale=scale) for seed in range(count)}
    return {name: save(dict(marginals(data, JobCall("marginals", 1)).tensors)) for name, data in visits.items()}


def test_the_chosen_pairs_are_legal_keep_all_target_pairs_and_find_the_strong_dependence() -> None:
    chosen = choose_pairs(RAW, replies(3, 2000))
    assert read_pairs(BOOK, chosen) == sorted((tuple(pair) for pair in chosen), key=all_pairs(BOOK).index)
    assert ["age", "egfr"] in chosen


def test_the_choice_is_legal_even_when_noise_is_all_there_is() -> None:
    for seed in range(3):
        noise = {
            name: SeededNoise(seed).gaussian(table.shape).astype(np.float32) * 1e4
            for name, table in load(replies(1, 2)["h0"]).items()
        }
        assert len(read_pairs(BOOK, choose_pairs(RAW, {"h": save(noise)}))) == 2 * INPUTS - 1


def test_a_node_that_sends_something_else_is_named() -> None:
    good = replies(2, 20)
    tensors = load(good["h0"])
    spoiled = [
        b"nothing",
        save({name: table for name, table in tensors.items() if name != "one-way/age"}),
        save({**tensors, "one-way/age": np.zeros(3, dtype=np.float32)}),
        save({**tensors, "one-way/age": np.full(11, np.nan, dtype=np.float32)}),
    ]
    for bad in spoiled:
        with pytest.raises(WireError, match="h1"):
            choose_pairs(RAW, {**good, "h1": bad})
