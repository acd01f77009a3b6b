"""Metrics from noised tables."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vht_federate.central.row_detection.json_documents import look_at_json
from vht_federate.domain.figures import released_figures
from vht_federate.packaging.evaluation import area_under_curve, metrics_of, share_interval, summarise

bins = st.lists(st.floats(-5, 500), min_size=4, max_size=4)


def test_perfect_chance_and_inverted_scores() -> None:
    assert area_under_curve([0, 0, 10], [10, 0, 0]) == 1.0
    assert area_under_curve([5, 5, 5], [7, 7, 7]) == pytest.approx(0.5)
    assert area_under_curve([10, 0, 0], [0, 0, 10]) == 0.0


@given(bins, bins)
def test_it_is_a_probability_and_swapping_the_classes_mirrors_it(up: list[float], down: list[float]) -> None:
    forth, back = area_under_curve(up, down), area_under_curve(down, up)
    assert -1e-9 <= forth <= 1 + 1e-9
    assert forth + back == pytest.approx(1.0)


def test_noise_below_zero_counts_as_empty() -> None:
    table = {"confusion": [50.0, -3.0, 10.0, 40.0], "positives": [-1.0, 50.0], "negatives": [50.0, -2.0]}
    metrics = metrics_of(table)
    assert metrics == {"auc": 1.0, "accuracy": 0.9, "sensitivity": 0.8, "specificity": 1.0}


def test_a_node_without_a_readable_table_has_no_metrics() -> None:
    good = {"confusion": [1.0, 1.0, 1.0, 1.0], "positives": [1.0, 1.0], "negatives": [1.0, 1.0]}
    summary = summarise({"a": good, "b": {"confusion": [1.0]}, "c": {}}, 1.0)
    assert list(summary["nodes"]) == ["a"]
    assert summary["mean"]["accuracy"] == 0.5
    assert summarise({}, 1.0)["mean"] == {}


def test_the_pooled_figures_come_with_a_radius_and_a_calibration_curve() -> None:
    table = {"confusion": [900.0, 90.0, 80.0, 700.0], "positives": [100.0, 0.0, 800.0], "negatives": [900.0, 0.0, 90.0]}
    one_node, four_nodes = summarise({"a": table}, 2.0), summarise(dict.fromkeys("abcd", table), 2.0)
    assert one_node["pooled"] == four_nodes["pooled"]
    assert 0 < four_nodes["pooled_auc_radius"] < one_node["pooled_auc_radius"] < 0.2
    observed, radius = four_nodes["calibration"]["observed"], four_nodes["calibration"]["radius"]
    assert (observed[0], observed[1], round(observed[2], 2)) == (0.1, None, 0.9)
    assert radius[0] < one_node["calibration"]["radius"][0]


def test_a_platform_does_not_take_the_figures_for_rows_of_people() -> None:
    bins = [40.0 + number for number in range(20)]
    table = {"confusion": [9.0] * 4, "positives": bins, "negatives": bins}
    summary = summarise(dict.fromkeys("abcd", table), 1.0)
    assert len(summary["calibration"]["observed"]) == 20
    verdict = look_at_json(json.dumps(summary))
    assert verdict is not None
    assert verdict.rows is None


@pytest.mark.parametrize(("part", "rest"), [(90, 10), (50, 50), (3, 60), (0, 40), (400, 20)])
@pytest.mark.parametrize("noise", [2.0, 12.0])
def test_the_interval_of_a_share_holds_as_often_as_it_says(part: int, rest: int, noise: float) -> None:
    """Over the noise alone, and also where noise turns a number negative. Seeded: the same draws every time."""
    rng, share = np.random.default_rng(7), part / (part + rest)
    noised = rng.normal((part, rest), noise, (2_000, 2))
    intervals = [share_interval(one, other, noise) for one, other in noised]
    held = np.mean([low - 1e-9 <= share <= high + 1e-9 for low, high in intervals])
    assert held >= 0.935
    narrow = [share_interval(one, other, noise / 4) for one, other in noised]  # the control: noise that is understated
    assert np.mean([low <= share <= high for low, high in narrow]) < 0.8


def test_an_area_that_noise_made_perfect_says_nothing_and_one_of_many_patients_does() -> None:
    chance = {"confusion": [3.0, 2.0, 2.0, 3.0], "positives": [-4.0, 9.0], "negatives": [9.0, -4.0]}
    clear = {"confusion": [9000.0, 900.0, 800.0, 9000.0], "positives": [800.0, 9000.0], "negatives": [9000.0, 900.0]}
    for table, informative in ((chance, False), (clear, True)):
        summary = summarise(dict.fromkeys("ab", table), 8.0)
        for of in ("mean", "pooled"):
            figures = released_figures(summary[of], summary["intervals"][of], summary["threshold"])
            assert set(figures) == {"auc", "accuracy", "sensitivity", "specificity"}
            assert {figure.informative for figure in figures.values()} == {informative}
            for figure in figures.values():
                assert figure.low is not None
                assert figure.high is not None
                assert 0 <= figure.low <= figure.value <= figure.high <= 1
    assert summarise(dict.fromkeys("ab", chance), 8.0)["pooled"]["auc"] == 1.0
    assert set(summary["intervals"]["nodes"]) == {"a", "b"}


def test_the_mean_of_many_nodes_has_an_interval_that_holds_for_all_of_them() -> None:
    rng, truth = np.random.default_rng(3), [(80, 20), (30, 70), (55, 45)]
    accuracy = float(np.mean([right / 100 for right, _ in truth]))
    held = []
    for _ in range(300):
        cells = [rng.normal((right / 2, wrong / 2, wrong / 2, right / 2), 4.0) for right, wrong in truth]
        tables = {
            str(number): {"confusion": list(map(float, table)), "positives": [1.0, 9.0], "negatives": [9.0, 1.0]}
            for number, table in enumerate(cells)
        }
        low, high = summarise(tables, 4.0)["intervals"]["mean"]["accuracy"]
        held.append(low <= accuracy <= high)
    assert np.mean(held) >= 0.95
