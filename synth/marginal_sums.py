"""At the coordinator: noisy tables of several nodes, checked and summed, with the noise each carries."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from synth.marginals import Table
from vht_federate.errors import WireError
from vht_federate.tensors import read_tensors

__all__ = ["NoisyTable", "read_reply", "sum_tables", "total_of"]


@dataclass(frozen=True)
class NoisyTable:
    """The sum of the nodes' tables; ``stddev`` is the noise of every cell of the sum."""

    table: Table
    counts: NDArray[np.float64]
    stddev: float


def read_reply(node: str, reply: bytes) -> dict[str, NDArray[np.float64]]:
    """A node's tensors. Raises WireError VHT-WIRE-TABLES naming the node."""
    refusal = WireError(f"the tables of {node} are not safetensors", code="VHT-WIRE-TABLES")
    tensors = {name: np.asarray(values, dtype=np.float64) for name, values in read_tensors(reply, refusal).items()}
    if not all(np.isfinite(values).all() for values in tensors.values()):
        raise WireError(f"the tables of {node} are not finite", code="VHT-WIRE-TABLES")
    return tensors


def sum_tables(tables: Sequence[Table], replies: Mapping[str, bytes], noise_multiplier: float) -> list[NoisyTable]:
    """Sum each of ``tables`` over the nodes. ``noise_multiplier`` is the plan's, relative to sqrt(number of tables).

    Raises WireError for a node whose reply lacks a table or has one of another shape.
    """
    sums = [np.zeros(table.shape) for table in tables]
    for node in sorted(replies):
        tensors = read_reply(node, replies[node])
        for total, table in zip(sums, tables, strict=True):
            counts = tensors.get(table.name)
            if counts is None or counts.shape != table.shape:
                raise WireError(f"{node} sent no table {table.name} of the right shape", code="VHT-WIRE-TABLES")
            total += counts
    stddev = noise_multiplier * sqrt(len(tables)) * sqrt(max(1, len(replies)))
    return [NoisyTable(table, total, stddev) for table, total in zip(tables, sums, strict=True)]


def total_of(tables: Sequence[NoisyTable]) -> float:
    """The minimum-variance estimate of the number of patients, from tables that each count everybody once."""
    weights = np.array([1.0 / (table.stddev**2 * table.counts.size) for table in tables])
    sums = np.array([table.counts.sum() for table in tables])
    return max(1.0, float((weights * sums).sum() / weights.sum()))
