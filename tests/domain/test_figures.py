"""A released figure is shown with its interval, or as one that says nothing."""

import pytest

from vht_federate.domain.figures import WIDEST, Figure, figures_of_manifest


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (0.76, 0.86, "0.812 (0.760 to 0.860)"),
        (0.5, 0.5 + WIDEST, "0.812 (0.500 to 1.000)"),
        (0.49, 1.0, "says nothing (0.490 to 1.000)"),
        (0.0, 1.0, "says nothing (0.000 to 1.000)"),
        (None, None, "says nothing (no interval was released)"),
    ],
)
def test_a_figure_whose_interval_is_too_wide_shows_no_number(low: float | None, high: float | None, text: str) -> None:
    figure = Figure("auc", 0.812, low, high, None)
    assert figure.text == text
    assert figure.informative is text.startswith("0.812")
    assert figure.to_dict()["informative"] is figure.informative


def test_what_depends_on_a_threshold_names_it() -> None:
    values = {"auc": 0.8, "accuracy": 0.7, "sensitivity": 0.275, "specificity": 0.9}
    intervals = {name: [value - 0.1, value + 0.1] for name, value in values.items()}
    manifest = {"evaluation": values, "evaluation_intervals": intervals, "evaluation_threshold": 0.5}
    figures = figures_of_manifest(manifest)
    assert [figure.title for figure in figures.values()] == [
        "AUC", "accuracy at threshold 0.5", "sensitivity at threshold 0.5", "specificity at threshold 0.5",
    ]  # fmt: skip
    assert all(figure.informative for figure in figures.values())


def test_a_release_of_an_earlier_version_shows_no_number_without_its_interval() -> None:
    figures = figures_of_manifest({"evaluation": {"auc": 1.0}})
    assert figures["auc"].text == "says nothing (no interval was released)"
    assert figures_of_manifest({"evaluation": None}) == figures_of_manifest({}) == {}
