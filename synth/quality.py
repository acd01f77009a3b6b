"""How well synthetic rows keep what was released: SDMetrics against tables rebuilt from the noisy marginals.

No real row is read, so this costs no privacy, and it says so: a score compares with privatised tables, whose noise
bounds what any table could score. ``expected`` is that bound, found by adding the same noise to the synthetic table
itself (a parametric bootstrap). The gate looks at the worst column, the worst pair and any NaN, never at a mean.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from synth.decode import decode_column, extremes
from synth.marginal_sums import NoisyTable
from synth.marginals import tables_of
from vht_federate.errors import CohortError
from vht_federate.packaging.codebook import Codebook

__all__ = ["TOLERANCE", "Score", "diagnose", "gate", "report", "simplex"]

TOLERANCE = 0.15  # a score may lie this far below what the noise alone explains
NOISE_DOMINATED = 0.5  # below this, a released table says more of its noise than of its counts
MEAN_ABSOLUTE_NORMAL = 0.798  # sqrt(2 / pi)
BOOTSTRAPS = 5
Counts = NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """An SDMetrics score of one column or pair, and what a perfect table would be expected to score.

    ``swamped``: the noise of the released table, added up over its cells, outweighs all its patients.
    """

    names: tuple[str, ...]
    metric: str
    score: float
    expected: float
    swamped: bool = False

    @property
    def noise_dominated(self) -> bool:
        """The released table says more of its noise than of its counts: a score against it judges nobody."""
        return self.swamped or not self.expected >= NOISE_DOMINATED

    @property
    def holds(self) -> bool:
        """A score that is not a number never holds; one that lies far below what the noise explains does not."""
        return bool(np.isfinite(self.score)) and (self.noise_dominated or self.score >= self.expected - TOLERANCE)

    def row(self) -> dict[str, Any]:
        """``holds`` is None where noise dominates the released table: no score against it could fail."""
        values = {"score": _json(self.score), "expected": _json(self.expected)}
        holds = None if self.noise_dominated and self.holds else self.holds
        return {"columns": list(self.names), "metric": self.metric, **values, "holds": holds}


def report(
    book: Codebook,
    tables: Sequence[NoisyTable],
    codes: NDArray[np.int64],
    table: pd.DataFrame,
    metadata: dict[str, Any],
) -> dict[str, Any]:
    """Scores of every column and of every pair whose table was released, and SDMetrics' diagnostic report."""
    rng = np.random.default_rng(0)
    scores = [_score(book, noisy, codes, rng) for noisy in tables]
    columns = [score for score in scores if len(score.names) == 1]
    pairs = [score for score in scores if len(score.names) == 2]
    reference = _reference(book, [noisy for noisy in tables if len(noisy.table.columns) == 1], len(table), rng)
    return {
        "schema_version": "1",
        "software": _software(),
        "reference": "tables rebuilt from the noisy marginals that were released; no real row was read",
        "columns": [score.row() for score in columns],
        "pairs": [score.row() for score in pairs],
        "column_mean": _json(float(np.mean([score.score for score in columns]))),
        "pair_mean": _json(float(np.mean([score.score for score in pairs]))),
        "worst_column": min(columns, key=_least).row(),
        "worst_pair": min(pairs, key=_least).row(),
        "noise_dominated": [list(score.names) for score in scores if score.noise_dominated],
        "tolerance": TOLERANCE,
        "diagnostic": diagnose(reference, table, metadata),
        "holds": all(score.holds for score in scores),
    }


def gate(figures: dict[str, Any]) -> None:
    """Raises CohortError VHT-COHORT-QUALITY naming the worst column or pair, or a diagnostic that is not perfect."""
    for scores in (figures["columns"], figures["pairs"]):
        bad = [row for row in scores if row["holds"] is False]
        if bad:
            names = " and ".join(bad[0]["columns"])
            raise CohortError(
                f"the synthetic cohort does not keep {names} ({len(bad)} of {len(scores)} fail)",
                code="VHT-COHORT-QUALITY",
                hint="see sdmetrics_report.json; more patients or a larger cohort epsilon help",
            )
    for name, score in figures["diagnostic"].items():
        if score is None or score < 1.0:
            raise CohortError(f"SDMetrics' diagnostic {name} is not 1", code="VHT-COHORT-QUALITY")


def diagnose(reference: pd.DataFrame, table: pd.DataFrame, metadata: dict[str, Any]) -> dict[str, float | None]:
    """SDMetrics' diagnostic report: values within bounds and categories, columns and types as they should be."""
    from sdmetrics.reports import DiagnosticReport

    name = next(iter(metadata["tables"]))
    diagnostic = DiagnosticReport()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diagnostic.generate({name: _plain(reference)}, {name: _plain(table)}, metadata, verbose=False)
    properties = diagnostic.get_properties()
    scores = dict(zip(properties["Property"], properties["Score"], strict=True))
    return {name: _json(float(scores[name])) for name in ("Data Validity", "Data Structure")}


def simplex(counts: Counts, total: float) -> Counts:
    """The nearest table (L2) without negative cells that sums to ``total`` (Duchi et al. 2008)."""
    flat = counts.ravel()
    falling = np.sort(flat)[::-1]
    excess = (np.cumsum(falling) - total) / np.arange(1, flat.size + 1)
    last_kept = int(np.flatnonzero(falling > excess)[-1])
    nearest: Counts = np.clip(flat - excess[last_kept], 0.0, None).reshape(counts.shape)
    return nearest


def _score(book: Codebook, noisy: NoisyTable, codes: NDArray[np.int64], rng: np.random.Generator) -> Score:
    """SDMetrics' TVComplement (one column) or ContingencySimilarity (two) over cells, missing included."""
    rows = len(codes)
    own = tables_of(codes, [noisy.table]).reshape(noisy.table.shape)
    scale = rows / max(1.0, float(noisy.counts.sum()))
    names = tuple(book.order[index] for index in noisy.table.columns)
    metric = "TVComplement" if len(names) == 1 else "ContingencySimilarity"
    synthetic = _rows_of(own, names)
    score = _compare(metric, _rows_of(simplex(noisy.counts * scale, rows), names), synthetic)
    expected = [
        _compare(
            metric, _rows_of(simplex(own + rng.normal(0, noisy.stddev * abs(scale), own.shape), rows), names), synthetic
        )
        for _ in range(BOOTSTRAPS)
    ]
    swamped = MEAN_ABSOLUTE_NORMAL * noisy.stddev * noisy.counts.size > max(1.0, float(noisy.counts.sum()))
    return Score(names, metric, score, float(np.mean(expected)), bool(swamped))


def _compare(metric: str, reference: pd.DataFrame, synthetic: pd.DataFrame) -> float:
    from sdmetrics.column_pairs import ContingencySimilarity
    from sdmetrics.single_column import TVComplement

    if metric == "TVComplement":
        name = reference.columns[0]
        return float(TVComplement.compute(reference[name], synthetic[name]))
    return float(ContingencySimilarity.compute(reference, synthetic))


def _rows_of(counts: Counts, names: tuple[str, ...]) -> pd.DataFrame:
    """A table of cells with as many rows as ``counts`` says, rounded."""
    rounded = np.rint(counts).astype(np.int64).ravel()
    cells = np.unravel_index(np.repeat(np.arange(rounded.size), rounded), counts.shape)
    return pd.DataFrame({name: index.astype(str) for name, index in zip(names, cells, strict=True)})


def _reference(book: Codebook, one_way: Sequence[NoisyTable], rows: int, rng: np.random.Generator) -> pd.DataFrame:
    """Columns drawn independently from the noisy one-way tables: enough to judge validity and structure."""
    columns = {}
    for noisy in one_way:
        name = book.order[noisy.table.columns[0]]
        shares = simplex(noisy.counts, float(rows)) / rows
        cells = rng.choice(len(shares), size=rows, p=shares / shares.sum())
        cells[: len(shares)] = np.arange(min(len(shares), rows))  # every public cell is legal
        columns[name] = decode_column(book.columns[name], cells, rng)
        if book.columns[name].kind == "quantity":
            columns[name].iloc[:2] = extremes(book.columns[name])
    return pd.DataFrame(columns)


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """Nullable types as the float, bool and object that SDMetrics expects."""
    plain = {}
    for name, column in table.items():
        floats = str(column.dtype) in ("Float64", "Int64")
        plain[name] = column.astype("float64") if floats else column.astype(object).where(column.notna(), None)
    return pd.DataFrame(plain)


def _least(score: Score) -> float:
    return score.score if np.isfinite(score.score) else -np.inf


def _json(value: float) -> float | None:
    return round(value, 6) if np.isfinite(value) else None


def _software() -> str:
    from importlib.metadata import version

    return f"sdmetrics {version('sdmetrics')}"
