"""A released figure with the interval that noise leaves it, as people and programs are shown it.

A figure is made of noised tables. Its interval holds with 95 % confidence over the noise alone: that the test patients
are a sample of all patients comes on top. One that is wider than ``WIDEST`` says nothing, and no number is shown.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["CONFIDENCE", "THRESHOLD", "WIDEST", "Figure", "figures_of_manifest", "released_figures"]

CONFIDENCE = 0.95
WIDEST = 0.5  # of an interval that says something, for figures that lie in [0, 1]
THRESHOLD = 0.5  # of the score, from which on a patient counts as predicted to have the outcome
_AT_THRESHOLD = ("accuracy", "sensitivity", "specificity")
_NAMES = {"auc": "AUC"}


@dataclass(frozen=True)
class Figure:
    """``value`` in [low, high]; both None where the release carries no interval. ``threshold``: None for the AUC."""

    name: str
    value: float
    low: float | None
    high: float | None
    threshold: float | None

    @property
    def informative(self) -> bool:
        return self.low is not None and self.high is not None and self.high - self.low <= WIDEST

    @property
    def title(self) -> str:
        """``AUC``, ``sensitivity at threshold 0.5``."""
        name = _NAMES.get(self.name, self.name.replace("_", " "))
        return name if self.threshold is None else f"{name} at threshold {self.threshold:g}"

    @property
    def interval(self) -> str:
        if self.low is None or self.high is None:
            return "no interval was released"
        return f"{self.low:.3f} to {self.high:.3f}"

    @property
    def text(self) -> str:
        """``0.812 (0.770 to 0.854)``, or that it says nothing."""
        return f"{self.value:.3f} ({self.interval})" if self.informative else f"says nothing ({self.interval})"

    def to_dict(self) -> dict[str, Any]:
        place = {"value": self.value, "low": self.low, "high": self.high, "informative": self.informative}
        return place | {"threshold": self.threshold, "title": self.title, "text": self.text}


def released_figures(
    values: Mapping[str, float] | None,
    intervals: Mapping[str, Any] | None,
    threshold: float | None = THRESHOLD,
) -> dict[str, Figure]:
    """``values`` by name, with ``intervals`` by name, each (low, high); those without one say nothing."""
    figures = {}
    for name, value in (values or {}).items():
        low, high = (intervals or {}).get(name) or (None, None)
        figures[name] = Figure(name, float(value), low, high, threshold if name in _AT_THRESHOLD else None)
    return figures


def figures_of_manifest(manifest: Mapping[str, Any]) -> dict[str, Figure]:
    """Those of a component's manifest. One of an earlier version states no intervals, and no threshold."""
    threshold = manifest.get("evaluation_threshold", THRESHOLD)
    return released_figures(manifest.get("evaluation"), manifest.get("evaluation_intervals"), threshold)
