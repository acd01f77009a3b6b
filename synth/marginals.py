"""The enclave's job ``marginals``: noisy tables of a visit's cohort, one row for each patient.

A patient's row is its last record; the outcome is 1 where any of its records says so. Adding or removing one patient
changes one cell by one in each table, so the L2 sensitivity of ``k`` tables together is sqrt(k). Round 1 releases all
one-way tables and coarse sketches of all pairs (McKenna et al. 2021, "Winning the NIST contest", federated); round 2
releases the fine two-way tables of the pairs that the coordinator chose from round 1.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from synth.two_way_tables import Pair, all_pairs, key_of, read_pairs
from vht_federate.components.job import CohortArrays, JobCall, JobReply, VisitData
from vht_federate.domain.plan import CohortPlan
from vht_federate.errors import RefusedError
from vht_federate.packaging.codebook import Codebook, Column, codebook_for
from vht_federate.privacy.noise import NoiseSource
from vht_federate.privacy.release import Private, release_gaussian

__all__ = [
    "Table",
    "coarse_cells",
    "encode",
    "marginals",
    "one_way_tables",
    "sketch_tables",
    "tables_of",
    "two_way_tables",
]

SKETCH_BINS = 3

Codes = NDArray[np.int64]


@dataclass(frozen=True)
class Table:
    """One table to count: columns by index into the codebook's order, and how each column's cells are merged."""

    name: str
    columns: tuple[int, ...]
    maps: tuple[tuple[int, ...], ...]  # fine cell -> cell of this table, for each column

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(max(cells) + 1 for cells in self.maps)


def marginals(data: VisitData, call: JobCall) -> JobReply:
    """Answer round 1 (no parameters) or round 2 (``{"pairs": [[a, b], …]}``). Raises RefusedError before any noise."""
    book, plan = _codebook(data), _plan(data)
    if call.tensors:
        raise RefusedError("marginals takes no tensors", code="VHT-REFUSED-CALL")
    if call.round == 1 and not call.params:
        releases = [
            (one_way_tables(book), plan.one_way_noise_multiplier),
            (sketch_tables(book), plan.sketch_noise_multiplier),
        ]
    elif call.round == 2 and set(call.params) == {"pairs"}:
        releases = [(two_way_tables(book, read_pairs(book, call.params["pairs"])), plan.two_way_noise_multiplier)]
    else:
        raise RefusedError("marginals has rounds 1 and 2 with their own parameters", code="VHT-REFUSED-CALL")
    codes = data.cohort.map(lambda cohort: encode(book, cohort.of(plan.population)))
    tensors: dict[str, NDArray[np.float32]] = {}
    for tables, multiplier in releases:
        tensors.update(_released(codes, tables, multiplier, data.noise))
    return JobReply(result={"tables": len(tensors)}, tensors=tensors)


def _codebook(data: VisitData) -> Codebook:
    """The visit's codebook, which must be the one of the installed component."""
    expected = codebook_for(data.component, data.profile)
    if data.codebook is None or dict(data.codebook) != expected:
        raise RefusedError(
            "the study's codebook is not the one of the installed component and profile",
            code="VHT-REFUSED-CODEBOOK",
            hint="send codebook_for(component, profile)",
        )
    return Codebook.read(expected)


def _plan(data: VisitData) -> CohortPlan:
    if data.plan.cohort is None:
        raise RefusedError("the plan of this study has no synthetic cohort", code="VHT-REFUSED-PLAN")
    return data.plan.cohort


def one_way_tables(book: Codebook) -> list[Table]:
    return [Table(f"one-way/{name}", (index,), (_fine(book, name),)) for index, name in enumerate(book.order)]


def sketch_tables(book: Codebook) -> list[Table]:
    """All pairs, each column merged to at most ``SKETCH_BINS`` cells."""
    return [_pair_table(book, pair, "sketch", coarse_cells) for pair in all_pairs(book)]


def two_way_tables(book: Codebook, pairs: Sequence[Pair]) -> list[Table]:
    return [_pair_table(book, pair, "pair", lambda column: tuple(range(column.cells))) for pair in pairs]


def coarse_cells(column: Column) -> tuple[int, ...]:
    """Which of at most three sketch cells each cell belongs to; missing joins the first (most often: normal)."""
    cells = min(SKETCH_BINS, column.values)
    merged = [value * cells // column.values for value in range(column.values)]
    return (*merged, 0) if column.missing else tuple(merged)


def encode(book: Codebook, cohort: CohortArrays) -> Codes:
    """int64 [patients, columns]: the cell of each patient's last record, in the codebook's order."""
    values = cohort.values[cohort.last_records()]
    codes = [_cells(book.columns[name], values[:, index]) for index, name in enumerate(book.inputs)]
    codes.append(cohort.labels())
    return np.stack(codes, axis=1)


def _cells(column: Column, values: NDArray[np.float32]) -> Codes:
    finite = np.isfinite(values)
    filled = np.round(np.where(finite, values, 0.0).astype(np.float64), 4)  # float32 is no finer where edges lie
    if column.kind == "quantity":
        cells = np.searchsorted(np.asarray(column.edges[1:-1]), filled, side="right")
    else:
        cells = np.rint(np.clip(filled, 0, column.values - 1)).astype(np.int64)
    return np.where(finite, cells, column.values if column.missing else 0).astype(np.int64)


def tables_of(codes: Codes, tables: Sequence[Table]) -> NDArray[np.float64]:
    """All ``tables`` counted and laid end to end."""
    counted = []
    for table in tables:
        merged = [np.asarray(cells)[codes[:, index]] for index, cells in zip(table.columns, table.maps, strict=True)]
        flat = np.ravel_multi_index(merged, table.shape)
        counted.append(np.bincount(flat, minlength=int(np.prod(table.shape))))
    return np.concatenate(counted).astype(np.float64)


def _released(
    codes: Private[Codes], tables: Sequence[Table], multiplier: float, noise: NoiseSource
) -> Mapping[str, NDArray[np.float32]]:
    exact: Private[Any] = codes.map(lambda patient_codes: tables_of(patient_codes, tables))
    noisy = release_gaussian(exact, sqrt(len(tables)), multiplier, noise)
    sizes = [int(np.prod(table.shape)) for table in tables]
    parts = np.split(noisy, np.cumsum(sizes)[:-1])
    return {table.name: part.reshape(table.shape).astype(np.float32) for table, part in zip(tables, parts, strict=True)}


def _fine(book: Codebook, name: str) -> tuple[int, ...]:
    return tuple(range(book.cells(name)))


def _pair_table(book: Codebook, pair: Pair, kind: str, cells: Any) -> Table:
    indices = tuple(book.order.index(name) for name in pair)
    return Table(f"{kind}/{key_of(pair)}", indices, tuple(cells(book.columns[name]) for name in pair))
