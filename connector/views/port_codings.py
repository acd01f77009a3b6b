"""Which codes in the store each port reads: those that it names, and those that stand for them by the code maps.

One rule for all that read the store by ports: cohorts, their derived views, surveys, what a permit opens. Maps widen a
port's list by pairs that the store holds, so SQL and views stay exact lists, and a manifest can name every one.
"""

# ruff: noqa: S608 - SQL is put together from our own paths and quoted codes.

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

import duckdb

from connector.duckdb_lockdown import quoted
from connector.fhir.codes import CodeMaps, Coding, Through
from connector.fhir.store import Generation
from connector.views.store_tables import parts
from vht_federate.components.contract import Source

__all__ = [
    "CODED",
    "VALUED",
    "PortCodings",
    "among",
    "held_codings",
    "named_codings",
    "read_port_codings",
    "table_of",
]

# The columns of a table that hold the system and the code of what a row is about.
CODED = {
    "observation": ("code_system", "code"),
    "condition": ("system", "code"),
    "medication_request": ("system", "code"),
}
# Rows that say something of their code: not of a panel, whose components do, nor of a value that was set aside.
VALUED = {
    "observation": "(number IS NOT NULL OR truth IS NOT NULL OR value_code IS NOT NULL)",
    "condition": "true",
    "medication_request": "true",
}


def table_of(source: Source) -> str | None:
    """The table that a port reads by codes; None for one about the patient."""
    if source.type.startswith("observation"):
        return "observation"
    return {"condition": "condition", "medication": "medication_request"}.get(source.type)


def named_codings(source: Source) -> tuple[Coding, ...]:
    """(system, code) of each code that the port itself names."""
    system = source.code_system if table_of(source) == "observation" else source.system
    return tuple((system, code) for code in source.codes)


def among(codings: Iterable[Coding], alias: str, table: str) -> str:
    """SQL: the row under ``alias`` of ``table`` is about one of ``codings``."""
    system_column, code_column = (f"{alias}.{column}" if alias else column for column in CODED[table])
    by_system: dict[str, list[str]] = {}
    for system, code in codings:
        by_system.setdefault(system, []).append(code)
    clauses = [
        f"({system_column} = {quoted(system)} AND {code_column} IN ({', '.join(map(quoted, codes))}))"
        for system, codes in by_system.items()
    ]
    return f"({' OR '.join(clauses)})" if clauses else "false"


@dataclass(frozen=True)
class PortCodings:
    """``mapped``: by a port's source, the codings of the store that are read beside those it names, each with the names
    of the maps by which it is (none: by its own system's order alone)."""

    mapped: Mapping[Source, Mapping[Coding, Through]] = field(default_factory=dict)

    def of(self, source: Source) -> tuple[Coding, ...]:
        """What the port reads: its own codings in their order, then the others, sorted."""
        return (*named_codings(source), *sorted(self.mapped.get(source, {})))

    def described(self, source: Source) -> dict[str, list[str]]:
        """For a manifest: ``SYSTEM|CODE`` of each other coding, with the maps by which it is read."""
        others = self.mapped.get(source, {})
        return {f"{system}|{code}": list(others[system, code]) for system, code in sorted(others)}


def held_codings(
    connection: duckdb.DuckDBPyConnection, generation: Generation, table: str, rows: str = "true"
) -> frozenset[Coding]:
    """Every (system, code) that ``table`` of the store holds in ``rows`` (SQL); codes without a system mean nothing."""
    system, code = CODED[table]
    if not generation.parts(table):
        return frozenset()
    rows = connection.execute(
        f"SELECT DISTINCT {system}, {code} FROM {parts(generation, table)} "
        f"WHERE {system} IS NOT NULL AND {code} IS NOT NULL AND {rows}"
    ).fetchall()
    return frozenset((row[0], row[1]) for row in rows)


def read_port_codings(
    connection: duckdb.DuckDBPyConnection, generation: Generation, sources: Collection[Source], maps: CodeMaps
) -> PortCodings:
    """What ``maps`` add to each of ``sources``, by the codes that ``generation`` holds. Only codes are read."""
    mapped: dict[Source, Mapping[Coding, Through]] = {}
    held: dict[str, frozenset[Coding]] = {}
    for source in dict.fromkeys(sources):
        table, named = table_of(source), named_codings(source)
        if table is None or not maps.may_widen(named):
            continue
        if table not in held:
            held[table] = held_codings(connection, generation, table)
        others = maps.read_for(named, held[table] - set(named))
        if others:
            mapped[source] = others
    return PortCodings(mapped)
