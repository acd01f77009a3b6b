"""Metrics from the noised tables that nodes released: post-processing, so no privacy is spent here.

One table per node: confusion [tn, fp, fn, tp] at threshold 0.5, and histograms of scores of positives and negatives
over equal bins of [0, 1]. Noise can make a cell negative; it then counts as empty.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["area_under_curve", "metrics_of", "summarise"]


def _cells(values: Sequence[float]) -> NDArray[np.float64]:
    return np.clip(np.asarray(values, dtype=np.float64), 0.0, None)


def area_under_curve(positives: Sequence[float], negatives: Sequence[float]) -> float:
    """P(score of a positive > score of a negative), ties half (Mann-Whitney). 0.5 where a class is empty."""
    up, down = _cells(positives), _cells(negatives)
    if up.sum() <= 0 or down.sum() <= 0:
        return 0.5
    up, down = up / up.sum(), down / down.sum()
    below = np.concatenate([[0.0], np.cumsum(down)[:-1]])
    return float((up * (below + down / 2)).sum())


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole > 0 else 0.0


def metrics_of(table: Mapping[str, Any]) -> dict[str, float]:
    """AUC, accuracy, sensitivity and specificity of one node's table; KeyError or ValueError for another shape."""
    tn, fp, fn, tp = _cells(table["confusion"])
    return {
        "auc": round(area_under_curve(table["positives"], table["negatives"]), 6),
        "accuracy": round(_share(tn + tp, tn + fp + fn + tp), 6),
        "sensitivity": round(_share(tp, tp + fn), 6),
        "specificity": round(_share(tn, tn + fp), 6),
    }


def summarise(tables: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """``{"nodes": {name: metrics}, "mean": metrics}``; the mean gives each node the same weight."""
    nodes = {}
    for name, table in sorted(tables.items()):
        try:
            nodes[name] = metrics_of(table)
        except (KeyError, TypeError, ValueError):
            continue  # a node whose table cannot be read has no metrics
    keys = next(iter(nodes.values()), {})
    return {"nodes": nodes, "mean": {key: round(float(np.mean([m[key] for m in nodes.values()])), 6) for key in keys}}
