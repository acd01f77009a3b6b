"""From cells back to values: uniform within a bin's public edges, rounded as the codebook says."""

from math import ceil

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from vht_federate.packaging.codebook import Codebook, Column

__all__ = ["decode", "decode_column", "extremes"]


def decode(book: Codebook, codes: NDArray[np.int64], rng: np.random.Generator) -> pd.DataFrame:
    """A table with one column for each of the codebook's: Float64, Int64, boolean or string, all nullable.

    Encoding a decoded value gives the cell it came from.
    """
    return pd.DataFrame(
        {name: decode_column(book.columns[name], codes[:, index], rng) for index, name in enumerate(book.order)}
    )


def decode_column(column: Column, cells: NDArray[np.int64], rng: np.random.Generator) -> "pd.Series[object]":
    """Values of one column; the cell after the last value is missing."""
    missing = cells >= column.values
    filled = np.where(missing, 0, cells)
    if column.kind == "quantity":
        values = np.empty(len(cells))
        for cell in np.unique(filled):
            grid = _grid(column, int(cell))
            members = np.flatnonzero(filled == cell)
            values[members] = grid[rng.integers(len(grid), size=len(members))]
        series = pd.Series(values, dtype="Float64" if column.decimals else "Int64")
    elif column.kind == "boolean":
        series = pd.Series(filled == 1, dtype="boolean")
    else:
        series = pd.Series(np.asarray(column.levels, dtype=object)[filled], dtype="string")
    series[missing] = pd.NA
    return series


def extremes(column: Column) -> tuple[float, float]:
    """The least and the greatest value that a quantity decodes to."""
    return float(_grid(column, 0)[0]), float(_grid(column, column.values - 1)[-1])


def _grid(column: Column, cell: int) -> NDArray[np.float64]:
    """All numbers with the column's decimals in a bin; the last bin includes its upper edge."""
    scale = 10**column.decimals
    low, high = column.edges[cell] * scale, column.edges[cell + 1] * scale
    first, last = ceil(round(low, 6)), ceil(round(high, 6)) - 1
    if cell == column.values - 1 and round(high, 6) == ceil(round(high, 6)):
        last += 1
    numbers = np.arange(first, last + 1) / scale
    return numbers if len(numbers) else np.array([(low + high) / 2 / scale])
