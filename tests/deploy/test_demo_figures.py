"""What the demo says beside its figures: one column alone, too few patients to say anything, and two kinds of data."""

import json
import math
from contextvars import copy_context
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from deploy.demo.baselines import HarnessRequest, measure_baselines
from deploy.demo.metrics import accuracy, auc, mean_over_nodes
from deploy.demo.run import prepare_baselines
from deploy.demo.studies import export_terms
from deploy.demo.summary import released
from deploy.demo.trivial_baselines import trivial_baselines
from deploy.local_federation import Hospital
from vht_federate.cli import app
from vht_federate.components.contract import Port
from vht_federate.components.job import CohortArrays
from vht_federate.components.registry import find_component
from vht_federate.domain.plan import StudyPlan, TrainingPlan

PORTS = tuple(find_component("hypertension-risk").component.port(name) for name in ("age", "systolic_bp", "smoker"))


def cohort_of(values: list[list[float]], outcome: list[float]) -> CohortArrays:
    patients = len(outcome)
    return CohortArrays(
        np.array(values, dtype=np.float32).reshape(patients, len(PORTS)),
        np.array(outcome, dtype=np.float32),
        np.arange(patients),
        np.zeros(patients, dtype=np.uint8),
    )


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), min_size=1, max_size=30))
def test_auc_is_the_share_of_pairs_in_the_right_order(rows: list[tuple[int, bool]]) -> None:
    score, label = np.array([s for s, _ in rows]), np.array([c for _, c in rows])
    pairs = [(s > t) + 0.5 * (s == t) for s in score[label] for t in score[~label]]
    assert auc(score, label) == pytest.approx(np.mean(pairs)) if pairs else math.isnan(auc(score, label))


def test_hospitals_weigh_alike_whatever_their_size_and_one_without_a_figure_is_left_out() -> None:
    def scored(scores: list[float], labels: list[int]) -> tuple[np.ndarray, np.ndarray]:
        return np.array(scores), np.array(labels)

    large = scored([0.1, 0.2, 0.3, 0.9, 0.8, 0.7], [0, 0, 0, 1, 1, 1])
    small = scored([0.9, 0.1], [0, 1])
    controls, nobody = scored([0.1, 0.6], [0, 0]), scored([], [])
    assert mean_over_nodes(auc, [large, small, controls, nobody]) == 0.5
    assert mean_over_nodes(accuracy, [large, small, controls, nobody]) == pytest.approx((1 + 0 + 0.5) / 3)
    assert mean_over_nodes(auc, [controls, nobody]) is None


def test_what_one_input_would_do_is_the_mean_over_hospitals_and_not_of_all_their_patients() -> None:
    train = cohort_of([[20, 120, 0], [70, 120, 0]], [0, 1])
    young = cohort_of([[20, 120, 0], [30, 120, 0]], [0, 1])
    old = cohort_of([[60, 120, 0], [70, 120, 0], [80, 120, 0]], [0, 1, 0])
    assert trivial_baselines([train], [young, old], PORTS)["auc_single_input"] == (1.0 + 0.5) / 2


def test_the_input_that_gives_cases_away_is_named_in_the_direction_of_the_training_patients() -> None:
    nan = math.nan
    train = cohort_of([[18, 120, nan], [19, 121, nan], [50, 120, 0], [60, 122, 1]], [1, 1, 0, 0])
    test = cohort_of([[18, 125, nan], [70, 119, 0], [40, 121, nan]], [1, 0, 0])
    assert trivial_baselines([train], [test], PORTS) == {
        "single_input": "age",
        "auc_single_input": 1.0,
        "auc_missing_count": 0.75,
    }


def test_what_the_test_patients_do_not_define_is_none() -> None:
    train = cohort_of([[30, 120, 0], [40, 130, 0]], [0, 1])
    controls = cohort_of([[30, 120, 0], [40, 130, 0]], [0, 0])
    empty = cohort_of([], [])
    for test in (controls, empty):
        figures = trivial_baselines([train], [test], PORTS)
        assert (figures["auc_single_input"], figures["auc_missing_count"]) == (None, None)


def test_categories_have_no_order_and_are_left_out() -> None:
    ports = (PORTS[0], Port(name="kind", title="k", kind="category", categories=("a", "b"), source=PORTS[2].source))
    train = CohortArrays(
        np.array([[50, 0], [51, 1]], dtype=np.float32), np.array([0, 1], dtype=np.float32),
        np.arange(2), np.zeros(2, dtype=np.uint8),
    )  # fmt: skip
    assert trivial_baselines([train], [train], ports)["single_input"] == "age"


def test_a_hospital_without_test_patients_leaves_the_baselines_defined(tmp_path: Path) -> None:
    """One tiny hospital beside a larger one: every figure is a number or null, and the file is JSON."""
    from vht_federate.samples.generator import generate

    generate(tmp_path / "data", hospitals=1, patients=60, seed=3)
    lone = tmp_path / "data" / "hospital-2"
    lone.mkdir()
    first = (tmp_path / "data" / "hospital-1" / "Patient.ndjson").read_text().splitlines()[0]
    (lone / "Patient.ndjson").write_text(first + "\n")
    (lone / "Observation.ndjson").write_text(
        "".join(
            f"{line}\n"
            for line in (tmp_path / "data" / "hospital-1" / "Observation.ndjson").read_text().splitlines()
            if f'Patient/{json.loads(first)["id"]}"' in line
        )
    )
    terms = export_terms(2)
    training = TrainingPlan(
        rounds=1, local_steps=2, sampling_rate=0.5, clipping_norm=1.0, noise_multiplier=2.0, learning_rate=0.5
    )
    HarnessRequest(
        hospitals={name: tmp_path / "data" / name for name in ("hospital-1", "hospital-2")},
        component=terms.component, profile=terms.profile, plan=StudyPlan(delta=1e-4, training=training),
    ).write(tmp_path)  # fmt: skip
    baselines = measure_baselines(tmp_path)
    assert json.loads((tmp_path / "harness" / "baselines.json").read_text()) == baselines
    assert baselines["patients"] >= baselines["test_patients"] > 0
    numbers = [value for value in baselines.values() if isinstance(value, float)]
    assert numbers
    assert all(math.isfinite(number) for number in numbers)
    first, lone = (baselines["by_node"][name] for name in ("hospital-1", "hospital-2"))
    assert (lone["test_patients"], lone["accuracy_pooled_nonprivate"]) == (0, None)
    assert baselines["accuracy_pooled_nonprivate"] == first["accuracy_pooled_nonprivate"] is not None
    assert baselines["auc_pooled_nonprivate"] == first["auc_pooled_nonprivate"]


def test_figures_are_of_the_hospitals_that_took_part(tmp_path: Path) -> None:
    training = TrainingPlan(
        rounds=1, local_steps=2, sampling_rate=0.5, clipping_norm=1.0, noise_multiplier=2.0, learning_rate=0.5
    )
    plan = StudyPlan(delta=1e-4, training=training).model_dump(mode="json")
    federation: Any = SimpleNamespace(
        root=tmp_path, hospitals=[Hospital(name, tmp_path / name) for name in ("a", "b", "c")],
        terms=export_terms(3), commands=SimpleNamespace(run=lambda *_: {"plan": plan}),
    )  # fmt: skip
    prepare_baselines(federation, tmp_path / "study.toml")
    assert sorted(HarnessRequest.read(tmp_path).hospitals) == ["a", "b", "c"]
    prepare_baselines(federation, tmp_path / "study.toml", ["a", "c"])
    assert sorted(HarnessRequest.read(tmp_path).hospitals) == ["a", "c"]


def test_a_released_figure_is_shown_with_what_noise_did_to_it() -> None:
    summary = {"auc_released": 0.91, "auc_released_interval": [0.75, 1.0]}
    assert released(summary, "auc") == "0.910 (0.750 to 1.000)"
    assert released({"auc_released": 1.0, "auc_released_interval": [0.0, 1.0]}, "auc").startswith("says nothing")
    assert released({"auc_released": None, "auc_released_interval": None}, "auc") == "-"


@pytest.mark.parametrize(("hospitals", "least"), [(1, 1), (2, 2), (4, 3), (16, 3)])
def test_hospitals_may_drop_out_of_an_exports_study_while_three_remain(hospitals: int, least: int) -> None:
    assert export_terms(hospitals).minimum_nodes == least


def test_two_kinds_of_data_at_once_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    answer = copy_context().run(
        CliRunner().invoke, app, ["--json", "demo", "--uci", ".", "--fhir", ".", "--out", str(out)]
    )
    assert (answer.exit_code, json.loads(answer.stdout)["error"]["code"]) == (2, "VHT-INPUT-DEMO")
    assert not out.exists()
