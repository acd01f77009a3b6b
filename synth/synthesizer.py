"""From noisy tables to rows: a graphical model fitted by mirror descent (McKenna, Sheldon and Miklau 2019), sampled.

The model's cliques are a tree over the inputs with the target in every clique, so it is sampled exactly and in one
pass: the target, the root given the target, then each child given its parent and the target. Everything here is
post-processing of released tables.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synth.pairs import Pair
from synth.tables import NoisyTable
from vht_federate.packaging.codebook import Codebook

__all__ = ["Model", "fit", "rooted", "sample"]

ITERATIONS = 600  # the loss is flat well before; a step costs under a millisecond once compiled


@dataclass(frozen=True)
class Model:
    """``root``: [target, first input]; ``links``: for each other input, its parent and [target, parent, child]."""

    first: str
    root: NDArray[np.float64]
    links: tuple[tuple[str, str, NDArray[np.float64]], ...]  # (parent, child, table), parents before children


def rooted(tree: Sequence[Pair], first: str) -> list[Pair]:
    """The tree's edges as (parent, child), parents before their children, from ``first``."""
    edges, reached, left = [], [first], list(tree)
    while left:
        for pair in left:
            known = [name for name in pair if name in reached]
            if known:
                child = pair[0] if pair[1] == known[0] else pair[1]
                edges.append((known[0], child))
                reached.append(child)
                left.remove(pair)
                break
        else:
            break
    return edges


def fit(book: Codebook, tables: Sequence[NoisyTable], total: float) -> Model:
    """Fit the model to ``tables``; those of two columns say which tree it has.

    Deterministic. JAX runs in float64 on the CPU while this function runs.
    """
    pairs = {_pair(_names(book, table)) for table in tables if len(table.table.columns) == 2}
    edges = rooted(sorted(pair for pair in pairs if book.target not in pair), book.inputs[0])
    mbi = _mbi()
    domain = mbi.Domain(book.order, [book.cells(name) for name in book.order])
    measured = [_measurement(mbi, book, table) for table in tables]
    estimated = mbi.estimation.MirrorDescent().estimate(domain, measured, known_total=total, iters=ITERATIONS)

    def table_of(*names: str) -> NDArray[np.float64]:
        return np.clip(np.asarray(estimated.project(names).datavector(flatten=False), dtype=np.float64), 0.0, None)

    links = tuple((parent, child, table_of(book.target, parent, child)) for parent, child in edges)
    return Model(book.inputs[0], table_of(book.target, book.inputs[0]), links)


def sample(book: Codebook, model: Model, rows: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """int64 [rows, columns], cells in the codebook's order."""
    codes: dict[str, NDArray[np.int64]] = {}
    codes[book.target] = _spread(model.root.sum(axis=1), rows, rng)
    codes[model.first] = _conditional(model.root, (codes[book.target],), rng)
    for parent, child, table in model.links:
        codes[child] = _conditional(table, (codes[book.target], codes[parent]), rng)
    return np.stack([codes[name] for name in book.order], axis=1)


def _spread(weights: NDArray[np.float64], rows: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``rows`` cells in these proportions, rounded at random so that nothing is lost, then shuffled."""
    total = weights.sum()
    shares = weights / total if total > 0 else np.full(len(weights), 1.0 / len(weights))
    offset = rng.random()
    edges = np.floor(np.concatenate([[0.0], np.cumsum(shares)]) * rows + offset).astype(np.int64)
    counts = np.diff(edges)
    counts[-1] += rows - counts.sum()
    return rng.permutation(np.repeat(np.arange(len(weights)), np.maximum(counts, 0))[:rows])


def _conditional(
    table: NDArray[np.float64], given: tuple[NDArray[np.int64], ...], rng: np.random.Generator
) -> NDArray[np.int64]:
    """The last axis given the others. Cells of ``given`` without mass fall back to the last axis's margin."""
    drawn = np.empty(len(given[0]), dtype=np.int64)
    flat = np.ravel_multi_index(given, table.shape[:-1])
    rows_of = table.reshape(-1, table.shape[-1])
    margin = rows_of.sum(axis=0)
    for cell in np.unique(flat):
        members = np.flatnonzero(flat == cell)
        weights = rows_of[cell] if rows_of[cell].sum() > 0 else margin
        drawn[members] = _spread(weights, len(members), rng)
    return drawn


def _mbi() -> Any:
    """mbi, imported late: it brings JAX. Its advice on import concerns JAX's settings, which are made here."""
    import jax

    jax.config.update("jax_enable_x64", True)
    jax.config.update("jax_enable_compilation_cache", False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mbi
    return mbi


@dataclass(frozen=True, eq=False)
class _Merged:
    """A linear query: a clique's cells merged into coarser ones. Hashable by identity, as JAX asks of static values."""

    matrix: NDArray[np.float64]

    def __call__(self, factor: Any) -> Any:
        return self.matrix @ factor.datavector()

    def op_norm_sq(self) -> float:
        return float(self.matrix.sum(axis=1).max())


def _measurement(mbi: Any, book: Codebook, table: NoisyTable) -> Any:
    names = _names(book, table)
    fine = tuple(book.cells(name) for name in names)
    counts = table.counts.ravel()
    if table.table.shape == fine:
        return mbi.LinearMeasurement(counts, names, table.stddev)
    cells = np.meshgrid(*(np.asarray(cells) for cells in table.table.maps), indexing="ij")
    merged = np.ravel_multi_index(tuple(cells), table.table.shape).ravel()
    matrix = (merged[None, :] == np.arange(counts.size)[:, None]).astype(np.float64)
    return mbi.LinearMeasurement(counts, names, table.stddev, query=_Merged(matrix))


def _pair(names: tuple[str, ...]) -> Pair:
    return names[0], names[1]


def _names(book: Codebook, table: NoisyTable) -> tuple[str, ...]:
    return tuple(book.order[index] for index in table.table.columns)
