"""Metrics from the noised tables that nodes released: post-processing, so no privacy is spent here.

One table per node: confusion [tn, fp, fn, tp] at threshold 0.5, and histograms of scores of positives and negatives
over equal bins of [0, 1]. Noise can make a cell negative. Shares count such a cell as empty; the area keeps it, since
emptying it would pull every noisy area towards one half.

Every figure has an interval: with 95 % confidence over the noise alone the figure without noise lies in it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vht_federate.domain.figures import CONFIDENCE, THRESHOLD
from vht_federate.privacy.scores import CalibrationPoint, ScoreTable, area_under_curve

__all__ = ["ADDED", "area_under_curve", "intervals_of", "metrics_of", "share_interval", "summarise"]

ADDED = ("intervals", "threshold")  # to the summary; those of earlier runs lack both
Interval = tuple[float, float]


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


def intervals_of(table: Mapping[str, Any], noise: float, confidence: float = CONFIDENCE) -> dict[str, Interval]:
    """The interval of each of ``metrics_of``, each by itself. ``noise``: standard deviation in each cell."""
    tn, fp, fn, tp = (float(cell) for cell in table["confusion"])
    scores = ScoreTable(tuple(table["negatives"]), tuple(table["positives"]), noise)
    area, radius = scores.area(), scores.area_radius(confidence)
    shares = {
        "accuracy": share_interval(tn + tp, fp + fn, noise * 2**0.5, confidence),
        "sensitivity": share_interval(tp, fn, noise, confidence),
        "specificity": share_interval(tn, fp, noise, confidence),
    }
    return {
        name: _around(value, {"auc": (area - radius, area + radius), **shares}[name])
        for name, value in metrics_of(table).items()
    }


def share_interval(part: float, rest: float, noise: float, confidence: float = CONFIDENCE) -> Interval:
    """Where the share p / (p + q) of exact numbers lies, of which ``part`` and ``rest`` are noised ones.

    Fieller (1954): for the true share s, part (1 - s) - rest s is normal around 0 with the variance
    noise^2 ((1 - s)^2 + s^2), so the interval is exact. It is [0, 1] where noise hides how many there are.
    """
    total, most = part + rest, (NormalDist().inv_cdf((1 + confidence) / 2) * noise) ** 2
    quadratic, linear, constant = total**2 - 2 * most, 2 * (most - part * total), part**2 - most
    if total <= 0 or quadratic <= 0:
        return 0.0, 1.0
    root = max(linear**2 - 4 * quadratic * constant, 0.0) ** 0.5
    return (-linear - root) / (2 * quadratic), (-linear + root) / (2 * quadratic)


def _around(value: float, interval: Interval) -> Interval:
    """Within [0, 1], and around ``value``, which counts negative cells as empty."""
    low, high = (min(max(end, 0.0), 1.0) for end in interval)
    return round(min(low, value), 6), round(max(high, value), 6)


def summarise(tables: Mapping[str, Mapping[str, Any]], noise_multiplier: float) -> dict[str, Any]:
    """``{"nodes": {name: metrics}, "mean": metrics, "pooled": metrics, "pooled_auc_radius", "calibration": columns,
    "intervals": {"nodes", "mean", "pooled"}, "threshold"}``.

    The mean gives each node the same weight; the pooled figures are those of the nodes' tables added up, so that their
    noise averages out. ``noise_multiplier``: standard deviation of each node's noise in a cell. With 95 % confidence
    it moved the pooled AUC by no more than the radius, and no observed share of the calibration by more than its own;
    each figure of ``intervals``, [low, high], is by itself. ``threshold`` is that of the confusion tables.
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
        nothing: dict[str, Any] = {"nodes": {}, "mean": {}, "pooled": {}}
        summary = {"nodes": nodes, "mean": mean, "pooled": {}, "pooled_auc_radius": None, "calibration": {}}
        return {**summary, "intervals": nothing, "threshold": THRESHOLD}
    pooled = _added(readable)
    noise = noise_multiplier * len(readable) ** 0.5
    scores = ScoreTable(tuple(pooled["negatives"]), tuple(pooled["positives"]), noise)
    return {
        "nodes": nodes,
        "mean": mean,
        "pooled": metrics_of(pooled),
        "pooled_auc_radius": round(scores.area_radius(), 6),
        "calibration": _columns(scores.calibration()),
        "intervals": {
            "nodes": {
                name: _plain(intervals_of(table, noise_multiplier))
                for name, table in zip(sorted(nodes), readable, strict=True)
            },
            "mean": _plain(_of_mean(readable, noise_multiplier, mean)),
            "pooled": _plain(intervals_of(pooled, noise)),
        },
        "threshold": THRESHOLD,
    }


def _of_mean(tables: Sequence[Mapping[str, Any]], noise: float, mean: Mapping[str, float]) -> dict[str, Interval]:
    """All nodes' intervals hold together with the confidence of one, so that their mean holds with it, too."""
    confidence = 1 - (1 - CONFIDENCE) / len(tables)
    each = [intervals_of(table, noise, confidence) for table in tables]
    ends = {name: [float(np.mean([one[name][end] for one in each])) for end in (0, 1)] for name in mean}
    return {name: _around(mean[name], (low, high)) for name, (low, high) in ends.items()}


def _plain(intervals: Mapping[str, Interval]) -> dict[str, list[float]]:
    return {name: list(interval) for name, interval in intervals.items()}


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
