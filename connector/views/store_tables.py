"""What a cohort is read from: the tables of the node's store as they lie."""

# ruff: noqa: S608 - SQL is put together from our own paths, quoted, and from constants.

from functools import cache
from typing import Protocol

import pyarrow.parquet as pq

from connector.duckdb_lockdown import quoted
from connector.fhir.persons import joined
from connector.fhir.resources import TABLES
from connector.fhir.store import Generation, table_name

__all__ = ["Relations", "last_possible", "parts", "stored"]

RECORDED = "recorded_"  # a table of when things were recorded, which the store keeps with the things
# Columns that stores of an older make lack, as SQL types.
_LATER = {
    table_name(kind): {
        name: "BOOLEAN" if type_ == "bool" else "TIMESTAMPTZ"
        for name, type_ in columns
        if name.endswith(("_until", "_partial"))
    }
    for kind, columns in TABLES.items()
}


class Relations(Protocol):
    """SQL of the relation that stands for ``table``."""

    def __call__(self, table: str) -> str: ...


def parts(generation: Generation, table: str) -> str:
    """A table function over every part of ``table``, as it lies."""
    return f"read_parquet([{', '.join(map(quoted, generation.parts(table)))}], union_by_name = true)"


def stored(generation: Generation) -> Relations:
    """The store's own tables, with the person in place of each id of theirs (``connector.fhir.persons``)."""
    return cache(lambda table: _stored(generation, table.removeprefix(RECORDED)))


def _stored(generation: Generation, table: str) -> str:
    held = {name for part in generation.parts(table) for name in pq.read_schema(part).names}
    missing = [f"NULL::{kind} AS {name}" for name, kind in _LATER[table].items() if name not in held]
    rows = f"SELECT {', '.join(['*', *missing])} FROM {parts(generation, table)}"
    return f"({joined(generation, table, rows)})"


def last_possible(moment: str) -> str:
    """SQL of the last moment that a stored dateTime may mean: what counts of an input. Its column is the first one."""
    return f"coalesce({moment}_until, {moment})"
