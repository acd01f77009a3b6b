"""Metrics from the noised tables that nodes released: post-processing, so no privacy is spent here.

One table per node: confusion [tn, fp, fn, tp] at threshold 0.5, and histograms of scores of positives and negatives
over equal bins of [0, 1]. Noise can make a cell negative. Shares count such a cell as empty; the area keeps it, since
emptying it would pull every noisy area towards one half.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vht_federate.privacy.scores import CalibrationPoint, ScoreTable, area_under_curve

__all__ = ["area_under_curve", "metrics_of", "summarise"]


def _cells(values: Sequence[float]) -> NDArray[np.float64]:
    return np.clip(np.asarray(values, dtype=np.float64), 0.0, None)


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


def summarise(tables: Mapping[str, Mapping[str, Any]], noise_multiplier: float) -> dict[str, Any]:
    """``{"nodes": {name: metrics}, "mean": metrics, "pooled": metrics, "pooled_auc_radius", "calibration": columns}``.

    The mean gives each node the same weight; the pooled figures are those of the nodes' tables added up, so that their
    noise averages out. ``noise_multiplier``: standard deviation of each node's noise in a cell. With 95 % confidence
    it moved the pooled AUC by no more than the radius, and no observed share of the calibration by more than its own.
    """
    nodes, readable = {}, []
    for name, table in sorted(tables.items()):
        try:
            nodes[name] = metrics_of(table)
        except (KeyError, TypeError, ValueError):
            continue  # a node whose table cannot be read has no metrics
        readable.append(table)
    keys = next(iter(nodes.values()), {})
    mean = {key: round(float(np.mean([metrics[key] for metrics in nodes.values()])), 6) for key in keys}
    if not readable:
        return {"nodes": nodes, "mean": mean, "pooled": {}, "pooled_auc_radius": None, "calibration": {}}
    pooled = _added(readable)
    noise = noise_multiplier * len(readable) ** 0.5
    scores = ScoreTable(tuple(pooled["negatives"]), tuple(pooled["positives"]), noise)
    return {
        "nodes": nodes,
        "mean": mean,
        "pooled": metrics_of(pooled),
        "pooled_auc_radius": round(scores.area_radius(), 6),
        "calibration": _columns(scores.calibration()),
    }


def _columns(points: Sequence[CalibrationPoint]) -> dict[str, list[float | None]]:
    """The curve by column: a list of points would look like rows of people to a platform."""

    def column(name: str) -> list[float | None]:
        values = [getattr(point, name) for point in points]
        return [None if value is None else round(value, 6) for value in values]

    return {field.name: column(field.name) for field in fields(CalibrationPoint)}


def _added(tables: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """The tables of all nodes as one."""

    def added(name: str) -> list[float]:
        total: list[float] = np.sum([np.asarray(table[name], dtype=np.float64) for table in tables], axis=0).tolist()
        return total

    return {name: added(name) for name in ("confusion", "positives", "negatives")}
