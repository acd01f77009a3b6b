"""How good scores are: at one hospital, and as the mean over the hospitals' test sets."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Scored", "accuracy", "auc", "mean_of", "mean_over_nodes"]

Scored = tuple[NDArray[Any], NDArray[Any]]  # (score, label), one of each per patient


def auc(score: NDArray[Any], label: NDArray[Any]) -> float:
    """Area under the ROC curve: the chance that a case scores above a control, ties half (Mann-Whitney).

    NaN without cases or without controls.
    """
    order = np.argsort(score, kind="stable")
    ranked = score[order]
    _, first, counts = np.unique(ranked, return_index=True, return_counts=True)
    ranks = np.empty(len(score))
    ranks[order] = np.repeat(first + (counts + 1) / 2, counts)
    cases = label > 0.5
    positives, negatives = int(cases.sum()), int((~cases).sum())
    if not positives or not negatives:
        return float("nan")
    return float((ranks[cases].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def accuracy(score: NDArray[Any], label: NDArray[Any]) -> float:
    """The share of patients on the right side of 0.5; NaN without patients."""
    return float(np.mean((score > 0.5) == (label > 0.5))) if len(score) else float("nan")


def mean_over_nodes(figure: Callable[[NDArray[Any], NDArray[Any]], float], scored: Sequence[Scored]) -> float | None:
    """The mean of ``figure`` over hospitals, each with the same weight whatever its size.

    A hospital whose test patients do not define it is left out; None where that leaves none.
    """
    return mean_of([figure(score, label) for score, label in scored])


def mean_of(figures: Sequence[float | None]) -> float | None:
    """Over the figures that are defined; None without one."""
    defined = [figure for figure in figures if figure is not None and np.isfinite(figure)]
    return float(np.mean(defined)) if defined else None
