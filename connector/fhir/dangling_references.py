"""References to what the store does not hold: a finding about an export, and no loss of what refers."""

# ruff: noqa: S608 - SQL is put together from our own paths, quoted, and from constants.

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from connector.duckdb_lockdown import quoted
from connector.fhir.resources import TABLES
from connector.fhir.store import table_name

__all__ = ["WITH_ENCOUNTER", "dangling_references"]

Query = Callable[[str], list[tuple[Any, ...]]]
WITH_ENCOUNTER = frozenset(kind for kind, columns in TABLES.items() if columns[0][0] == "encounter")
_SUBJECTS = """
SELECT type || '.subject', count(*)
FROM (SELECT type, subject FROM verdict WHERE verdict = 'accepted' AND type <> 'Patient' AND subject IS NOT NULL) v
    ANTI JOIN ({held}) h ON v.subject = h.subject
GROUP BY type
"""
_ENCOUNTERS = """
SELECT count(DISTINCT resource)
FROM (SELECT resource, encounter FROM read_parquet({part}) WHERE encounter IS NOT NULL) r
    ANTI JOIN ({held}) h ON r.encounter = h.resource
"""


def dangling_references(query: Query, held: Mapping[str, Sequence[Path]], taken: Mapping[str, Path]) -> dict[str, int]:
    """By element: how many of the accepted resources refer to a Patient or an Encounter that is not held.

    ``held`` are the parts of ``patient`` and ``encounter`` as they stand after this intake, ``taken`` the parts that
    it wrote, by table.
    """
    patients, encounters = (_keys(held[table], column) for table, column in _TARGETS)
    found: dict[str, int] = dict(query(_SUBJECTS.format(held=patients)))
    for kind in sorted(WITH_ENCOUNTER):
        if part := taken.get(table_name(kind)):
            [(count,)] = query(_ENCOUNTERS.format(part=quoted(part), held=encounters))
            found |= {f"{kind}.encounter": count} if count else {}
    return dict(sorted(found.items()))


_TARGETS = (("patient", "subject"), ("encounter", "resource"))


def _keys(parts: Sequence[Path], column: str) -> str:
    """The keys in these parts, each as often as it stands there."""
    if not parts:
        return f"SELECT NULL::VARCHAR AS {column} WHERE false"
    return f"SELECT {column} FROM read_parquet([{', '.join(map(quoted, parts))}])"
