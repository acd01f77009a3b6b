"""What a cohort is read from: the tables of the node's store as they lie."""

from typing import Protocol

from connector.duckdb_lockdown import quoted
from connector.fhir.store import Generation

__all__ = ["Relations", "parts", "stored"]

RECORDED = "recorded_"  # a table of when things were recorded, which the store keeps with the things


class Relations(Protocol):
    """SQL of the relation that stands for ``table``."""

    def __call__(self, table: str) -> str: ...


def parts(generation: Generation, table: str) -> str:
    """A table function over every part of ``table``."""
    return f"read_parquet([{', '.join(map(quoted, generation.parts(table)))}])"


def stored(generation: Generation) -> Relations:
    """The store's own tables."""
    return lambda table: parts(generation, table.removeprefix(RECORDED))
