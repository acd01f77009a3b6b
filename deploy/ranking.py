"""How well a score ranks cases above controls."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["auc"]


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
