"""The demo's report: one file that fetches nothing, says what is not private, and has no number that is not there."""

from datetime import UTC, datetime
from typing import Any

import pytest
from kit.summary_contract import check_report
from markupsafe import escape

from deploy.demo.baselines import ABOUT
from deploy.demo.plots import budgets, curve, marginal
from deploy.demo.report import report_html

MOMENT = datetime(2026, 1, 2, tzinfo=UTC)
NODE = {
    "test_patients": 30, "test_patients_with_outcome": 0, "auc_federated": None, "auc_pooled_nonprivate": None,
    "auc_local": None, "accuracy_federated": 0.9, "accuracy_majority": 0.8,
}  # fmt: skip
MARGINAL = {
    "unit": "a", "edges": [0.0, 10.0, 20.0], "cells": ["[0, 10)", "[10, 20)", "missing"],
    "real": [0.5, 0.25, 0.25], "synthetic": [0.25, 0.5, 0.25], "tvd": 0.25,
}  # fmt: skip


def harness_of(**changes: Any) -> dict[str, Any]:
    figures = {
        "private": False, "about": ABOUT, "patients": 100, "patients_with_outcome": 20, "test_patients": 33,
        "test_patients_with_outcome": 7, "auc_federated": 0.81, "accuracy_federated": 0.79,
        "auc_pooled_nonprivate": 0.83, "accuracy_pooled_nonprivate": 0.82, "auc_local_mean": None,
        "accuracy_local_mean": 0.75, "accuracy_majority": 0.71, "single_input": "age", "auc_single_input": 0.6,
        "auc_missing_count": 0.5, "real_auc": 0.8277, "tstr_auc": 0.7766, "tvd_mean": 0.05, "tvd_worst": 0.25,
        "tvd_worst_variable": "age", "marginals": {"age": MARGINAL}, "by_node": {"hospital-1": NODE},
        "learning_curve": {"round": [1, 2], "auc": [0.75, 0.81], "accuracy": [0.7, None]},
    }  # fmt: skip
    return {**figures, **changes}


def summary_of(**changes: Any) -> dict[str, Any]:
    summary = {
        "study_id": "a-study", "component": "cardio-risk", "profile": "p", "state": "completed",
        "reason": "1 of 1 nodes took part to the end", "lost": {}, "nodes": 1, "rounds": 2, "patients_noised": 67,
        "seconds_total": 123.4, "phase_seconds_median": 4.5, "epsilon": 2.9, "epsilon_permitted": 3.0, "delta": 1e-5,
        "epsilon_by_population": {"train": 2.9, "test": 2.5}, "unit": "patient", "accountant": "pld",
        "auc_federated": 0.81, "accuracy_mean_over_nodes": 0.79, "auc_released": 0.8, "auc_released_radius": 0.06,
        "auc_released_interval": [0.74, 0.86], "accuracy_released": 0.78, "accuracy_released_interval": [0.7, 0.85],
        "cohort": {"rows": 61, "epsilon": 1.1},
        "ledger": {"hospital-1": {"cap": 10.0, "spent": 2.9, "entries": 14}},
        "bytes_out_per_node": {"hospital-1": 12345}, "harness": harness_of(),
        "isolation": {"level": "sandbox", "walls": ["seccomp", "landlock-7"], "missing": []},
        "audit": {"verified": True, "entries": 44, "entries_by_node": {"hospital-1": 44}},
        "paths": {"package": "/o/run/release", "cohort": "/o/run/cohort", "report": "/o/report.html"},
    }  # fmt: skip
    return {**summary, **changes}


def test_released_figures_stand_with_their_intervals_and_an_empty_one_as_such() -> None:
    page = report_html(summary_of(), made_at=MOMENT)
    assert "0.800 (0.740 to 0.860)" in page
    assert "0.780 (0.700 to 0.850)" in page
    nothing = report_html(summary_of(auc_released=1.0, auc_released_interval=[0.0, 1.0]), made_at=MOMENT)
    assert "says nothing (0.000 to 1.000)" in nothing
    assert "1.000 (" not in nothing


def test_a_report_is_one_file_that_fetches_nothing_and_marks_what_is_not_private() -> None:
    page = report_html(summary_of(), made_at=MOMENT)
    assert check_report(page).count("svg") >= 4
    assert escape(ABOUT) in page
    # What comes from the source files stands under the mark, what was released above it.
    mark = page.index("Not private")
    assert page.index("AUC, as released") < mark < page.index("0.830") < page.index("Numbers")


def test_a_report_shows_the_figures_with_their_units() -> None:
    page = report_html(summary_of(), made_at=MOMENT)
    for figure in ("2.900", "1e-05", "12.3 kB", "0.828", "0.777", "2.900 of 10", "25.0 %", "share of test patients"):
        assert figure in page, figure


def test_a_report_of_a_withheld_cohort_says_why_and_draws_no_marginals() -> None:
    reason = "1 of 1 nodes took part to the end; the cohort is withheld: it does not keep <age>"
    nothing = dict.fromkeys(("tstr_auc", "tvd_mean", "tvd_worst", "tvd_worst_variable", "marginals"))
    page = report_html(summary_of(cohort=None, reason=reason, harness=harness_of(**nothing)), made_at=MOMENT)
    check_report(page)
    assert "it does not keep &lt;age&gt;" in page
    assert "<age>" not in page
    assert "No synthetic cohort was released" in page
    assert 'class="real" x=' not in page


def test_a_curve_leaves_out_what_is_not_defined_and_draws_every_level() -> None:
    plot = curve("t", [1, 2, 3], [0.7, None, 0.8], {"pooled": 0.82, "alone": None})
    assert plot.count('class="dot"') == 2
    assert 'class="level pooled"' in plot
    assert "level alone" not in plot


@pytest.mark.parametrize(("values", "levels"), [([], {}), ([None], {"pooled": None}), ([0.5], {}), ([0.0, 1.0], {})])
def test_a_curve_can_be_drawn_of_little_and_of_much(values: list[float | None], levels: dict[str, Any]) -> None:
    plot = curve("t", list(range(1, len(values) + 1)), values, levels)
    assert "nan" not in plot
    assert plot.count('class="rule"') <= 9


def test_a_budget_bar_is_as_long_as_what_was_spent_of_the_largest_cap() -> None:
    plot = budgets("t", {"one": (5.0, 10.0), "two": (1.0, 5.0)})
    wide = {
        kind: [float(part.split('width="')[1].split('"')[0]) for part in plot.split(f'class="{kind}"')[1:]]
        for kind in ("track", "spent")
    }
    assert wide["spent"][0] == pytest.approx(wide["track"][0] / 2, abs=0.1)
    assert wide["track"][1] == pytest.approx(wide["track"][0] / 2, abs=0.1)
    assert wide["spent"][1] == pytest.approx(wide["track"][0] / 10, abs=0.1)


def test_names_of_columns_are_text_in_a_plot_never_markup() -> None:
    named = {**MARGINAL, "edges": [], "cells": ["<b>", "&", "missing"]}
    plot = marginal('"><script>', named)
    assert "<script>" not in plot
    assert "<b>" not in plot


def test_a_machine_whose_enclaves_are_no_sandbox_is_said_so() -> None:
    missing = ["no view of files: Landlock (Linux 5.13)"]
    weaker = summary_of(isolation={"level": "system-calls", "walls": ["seccomp"], "missing": missing})
    page = report_html(weaker, made_at=MOMENT)
    assert "Enclaves were no sandbox" in page
    assert str(escape(missing[0])) in page
    assert "no sandbox" not in report_html(summary_of(), made_at=MOMENT)
