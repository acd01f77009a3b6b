"""From noisy tables to rows: a graphical model fitted by mirror descent (McKenna, Sheldon and Miklau 2019), sampled.

The model's cliques are (target, parent, child) for each edge of a tree over the inputs, so beliefs pass along the tree
once and the model is sampled exactly in one pass: the target, the root given the target, then each child given its
parent and the target. Plain NumPy: a general solver (mbi) reaches the same tables, but compiles anew for every tree,
which costs it seconds to minutes where a fit takes one second. Everything here is post-processing of released tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from synth.marginal_sums import NoisyTable
from synth.two_way_tables import Pair
from vht_federate.packaging.codebook import Codebook

__all__ = ["Model", "fit", "loss_of", "rooted", "sample"]

ITERATIONS = 1500
_GROW, _SHRINK, _ENOUGH = 1.05, 0.5, 0.5  # of the step, and of the decrease that Armijo's rule asks for
_STALLED = 1e-9  # relative decrease of the loss over a hundred accepted steps

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Model:
    """``root``: [target, first input]; ``links``: for each other input, its parent and [target, parent, child]."""

    first: str
    root: Array
    links: tuple[tuple[str, str, Array], ...]  # (parent, child, table), parents before children


@dataclass(frozen=True)
class _Measured:
    """A noisy table and where it lies: summed over ``away`` of clique ``clique`` (-1: the root's table)."""

    clique: int
    away: tuple[int, ...]
    flipped: bool  # the table's columns stand in the other order
    counts: Array
    precision: float

    def residual(self, tables: Sequence[Array]) -> Array:
        margin = tables[self.clique].sum(axis=self.away)
        gap: Array = (margin.T if self.flipped else margin) - self.counts
        return gap

    def spread(self, residual: Array) -> Array:
        """The loss's gradient with respect to the clique's table."""
        oriented = residual.T if self.flipped else residual
        return np.expand_dims(oriented, self.away) * self.precision


def rooted(tree: Sequence[Pair], first: str) -> list[Pair]:
    """The tree's edges as (parent, child), parents before their children, from ``first``."""
    edges, reached, remaining = [], [first], list(tree)
    while remaining:
        for pair in remaining:
            reached_ends = [name for name in pair if name in reached]
            if reached_ends:
                child = pair[0] if pair[1] == reached_ends[0] else pair[1]
                edges.append((reached_ends[0], child))
                reached.append(child)
                remaining.remove(pair)
                break
        else:
            break
    return edges


def fit(book: Codebook, tables: Sequence[NoisyTable], total: float) -> Model:
    """Fit the model to ``tables``; those of two columns say which tree it has. Deterministic."""
    pairs = {_pair(_names(book, table)) for table in tables if len(table.table.columns) == 2}
    edges = rooted(sorted(pair for pair in pairs if book.target not in pair), book.inputs[0])
    measured = [_measured(book, edges, table) for table in tables]
    shape = (book.cells(book.target), book.cells(book.inputs[0]))
    start = [np.zeros((shape[0], book.cells(parent), book.cells(child))) for parent, child in edges]
    clique_tables = _descend([*start, np.zeros(shape)], edges, book.inputs[0], measured, total)
    links = tuple((parent, child, table) for (parent, child), table in zip(edges, clique_tables, strict=False))
    return Model(book.inputs[0], clique_tables[-1], links)


def loss_of(book: Codebook, model: Model, tables: Sequence[NoisyTable]) -> float:
    """Half the sum of squared residuals over their variances: what ``fit`` makes small."""
    edges = [(parent, child) for parent, child, _ in model.links]
    clique_tables = [*(table for _, _, table in model.links), model.root]
    return _loss([_measured(book, edges, table) for table in tables], clique_tables)[0]


def _descend(
    potentials: list[Array], edges: Sequence[Pair], first: str, measured: Sequence[_Measured], total: float
) -> list[Array]:
    """Entropic mirror descent with Armijo's rule; the clique tables of the last accepted step."""
    tables = _beliefs(potentials, edges, first, total)
    loss, residuals = _loss(measured, tables)
    step = 1.0 / (total * max(noisy.precision for noisy in measured))
    checked = loss
    for number in range(1, ITERATIONS + 1):
        gradient = _gradient(potentials, measured, residuals)
        trial = [potential - step * slope for potential, slope in zip(potentials, gradient, strict=True)]
        there = _beliefs(trial, edges, first, total)
        lower, further = _loss(measured, there)
        gained = sum(
            float((slope * (old - new)).sum()) for slope, old, new in zip(gradient, tables, there, strict=True)
        )
        if loss - lower >= _ENOUGH * gained:
            potentials, tables, loss, residuals, step = trial, there, lower, further, step * _GROW
        else:
            step *= _SHRINK
        if number % 100 == 0:
            if checked - loss <= _STALLED * max(loss, 1.0):
                break
            checked = loss
    return tables


def _beliefs(potentials: Sequence[Array], edges: Sequence[Pair], first: str, total: float) -> list[Array]:
    """Clique tables of the model, each summing to ``total``: messages to the root, then conditionals outwards."""
    towards: dict[str, Array] = {}  # [target, column]: what the columns beyond say
    downwards: list[Array] = [np.empty(0)] * len(edges)
    for index in range(len(edges) - 1, -1, -1):
        parent, child = edges[index]
        weight = potentials[index] + towards[child][:, None, :] if child in towards else potentials[index]
        top = weight.max(axis=2, keepdims=True)
        powers = np.exp(weight - top)
        mass = powers.sum(axis=2, keepdims=True)
        downwards[index] = powers / mass
        message = (np.log(mass) + top)[:, :, 0]
        towards[parent] = towards[parent] + message if parent in towards else message
    weight = potentials[-1] + towards.get(first, 0.0)
    root = np.exp(weight - weight.max())
    root *= total / root.sum()
    joints = {first: root}
    tables = []
    for (parent, child), conditional in zip(edges, downwards, strict=True):
        table = joints[parent][:, :, None] * conditional
        joints[child] = table.sum(axis=1)
        tables.append(table)
    return [*tables, root]


def _loss(measured: Sequence[_Measured], tables: Sequence[Array]) -> tuple[float, list[Array]]:
    residuals = [noisy.residual(tables) for noisy in measured]
    loss = sum(noisy.precision * float((gap * gap).sum()) for noisy, gap in zip(measured, residuals, strict=True)) / 2
    return loss, residuals


def _gradient(like: Sequence[Array], measured: Sequence[_Measured], residuals: Sequence[Array]) -> list[Array]:
    gradient = [np.zeros_like(potential) for potential in like]
    for noisy, gap in zip(measured, residuals, strict=True):
        gradient[noisy.clique] += noisy.spread(gap)
    return gradient


def _measured(book: Codebook, edges: Sequence[Pair], table: NoisyTable) -> _Measured:
    """Find a clique that holds the table's columns: the root's (target, first input) or an edge's."""
    names = _names(book, table)
    cliques = [*((book.target, *edge) for edge in edges), (book.target, book.inputs[0])]
    clique = next(index for index, columns in reversed(list(enumerate(cliques))) if set(names) <= set(columns))
    axes = [cliques[clique].index(name) for name in names]
    away = tuple(axis for axis in range(len(cliques[clique])) if axis not in axes)
    index = clique if clique < len(edges) else -1
    return _Measured(index, away, axes != sorted(axes), table.counts, 1.0 / table.stddev**2)


def sample(book: Codebook, model: Model, rows: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """int64 [rows, columns], cells in the codebook's order."""
    codes: dict[str, NDArray[np.int64]] = {}
    codes[book.target] = _spread(model.root.sum(axis=1), rows, rng)
    codes[model.first] = _conditional(model.root, (codes[book.target],), rng)
    for parent, child, table in model.links:
        codes[child] = _conditional(table, (codes[book.target], codes[parent]), rng)
    return np.stack([codes[name] for name in book.order], axis=1)


def _spread(weights: Array, rows: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """``rows`` cells in these proportions, rounded at random so that nothing is lost, then shuffled."""
    total = weights.sum()
    shares = weights / total if total > 0 else np.full(len(weights), 1.0 / len(weights))
    edges = np.floor(np.concatenate([[0.0], np.cumsum(shares)]) * rows + rng.random()).astype(np.int64)
    counts = np.diff(edges)
    counts[-1] += rows - counts.sum()
    return rng.permutation(np.repeat(np.arange(len(weights)), np.maximum(counts, 0))[:rows])


def _conditional(table: Array, given: tuple[NDArray[np.int64], ...], rng: np.random.Generator) -> NDArray[np.int64]:
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


def _pair(names: tuple[str, ...]) -> Pair:
    return names[0], names[1]


def _names(book: Codebook, table: NoisyTable) -> tuple[str, ...]:
    return tuple(book.order[index] for index in table.table.columns)
