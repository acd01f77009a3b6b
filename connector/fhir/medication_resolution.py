"""Prescriptions that name their medication by reference: its codes come from the Medication, wherever in the export
that stands, or from the store.

A prescription whose Medication nobody has is held back before anything is decided, so that it takes no other's place.
What was resolved keeps the Medication's key: a newer version of it gives its codes to the prescriptions that are held.
"""

# ruff: noqa: S608 - SQL is put together from our own paths, quoted, and from constants.

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from connector.duckdb_lockdown import quoted
from connector.fhir.resources import MEDICATION
from connector.fhir.store import Generation, table_name

__all__ = ["PRESCRIPTIONS", "gather_codes", "hold_back", "revise_prescriptions"]

Query = Callable[[str], list[tuple[Any, ...]]]
_NONE = "SELECT NULL::VARCHAR AS resource, NULL::VARCHAR AS system, NULL::VARCHAR AS code, 0::BIGINT AS nth WHERE false"
# The staged rows of accepted prescriptions, with the codes of what they refer to.
PRESCRIPTIONS = """
SELECT s.* EXCLUDE (file, line, file_row_number)
    REPLACE (CASE WHEN medication IS NULL THEN s.system ELSE m.system END AS system,
        CASE WHEN medication IS NULL THEN s.code ELSE m.code END AS code)
FROM {staged} s JOIN verdict v ON s.file = v.file AND s.line = v.line
    LEFT JOIN medication_code m ON s.medication = m.resource
WHERE verdict = 'accepted' ORDER BY s.file_row_number, m.nth
"""


def _held(before: Generation | None) -> str:
    parts = before.parts(table_name(MEDICATION)) if before else []
    if not parts:
        return _NONE
    files = ", ".join(map(quoted, parts))
    return f"SELECT resource, system, code, file_row_number AS nth FROM read_parquet([{files}], file_row_number = true)"


def hold_back(query: Query, before: Generation | None, *, lines: str, prescriptions: str, seen: str) -> str:
    """Table ``unresolved``: lines of ``prescriptions`` whose Medication is neither among ``lines`` nor held, or was
    deleted; what is held itself (``seen``) only repeats. The relation of the other lines; ``buried`` (``deletions``)
    must be there."""
    known = f"SELECT resource FROM {lines} WHERE type = '{MEDICATION}' UNION ALL SELECT resource FROM ({_held(before)})"
    query(f"""CREATE TEMP TABLE unresolved AS
        SELECT DISTINCT file, line FROM (
            SELECT file, line FROM {prescriptions} WHERE medication IS NOT NULL
                AND (medication IN (SELECT resource FROM buried) OR medication NOT IN ({known}))
        ) JOIN {lines} USING (file, line) ANTI JOIN ({seen}) USING (resource, content)""")
    return f"(SELECT l.* FROM {lines} l ANTI JOIN unresolved USING (file, line))"


def gather_codes(query: Query, before: Generation | None, *, medications: str) -> None:
    """Table ``medication_code`` (resource, system, code, nth): the codes of every Medication, as they stand now."""
    query(f"""CREATE TEMP TABLE medication_code AS
        SELECT s.resource, system, code, file_row_number AS nth
        FROM {medications} s JOIN verdict v ON s.file = v.file AND s.line = v.line WHERE verdict = 'accepted'
        UNION ALL SELECT * FROM ({_held(before)}) h ANTI JOIN gone USING (resource)""")


def revise_prescriptions(query: Query, before: Generation | None, fresh: Path) -> None:
    """Prescriptions that are held, with the codes of Medications that came in another version, or came back."""
    query(f"""CREATE TEMP TABLE revised AS SELECT resource FROM verdict
        WHERE type = '{MEDICATION}' AND verdict = 'accepted'""")
    [(any_revised,)] = query("SELECT count(*) FROM revised")
    for old in before.parts(table_name("MedicationRequest")) if before and any_revised else ():
        part = fresh / old.name if (fresh / old.name).exists() else old
        if "medication" in pq.read_schema(part).names:  # parts of before references were followed lack it
            _revise(query, part, fresh / old.name)


def _revise(query: Query, part: Path, target: Path) -> None:
    rows = f"read_parquet({quoted(part)}, file_row_number = true)"
    affected = f"SELECT p.* FROM {rows} p SEMI JOIN revised r ON p.medication = r.resource"
    if not query(f"{affected} LIMIT 1"):
        return
    time, written = part.stat(), target.with_suffix(".revised")
    query(f"""COPY (
            SELECT p.* EXCLUDE (file_row_number) FROM {rows} p ANTI JOIN revised r ON p.medication = r.resource
            UNION ALL BY NAME
            SELECT p.*, m.system, m.code FROM (
                SELECT DISTINCT * EXCLUDE (file_row_number, system, code) FROM ({affected})) p
            LEFT JOIN medication_code m ON p.medication = m.resource)
        TO {quoted(written)} (FORMAT parquet, COMPRESSION zstd)""")
    written.replace(target)
    os.utime(target, ns=(time.st_atime_ns, time.st_mtime_ns))  # its time says when this was taken in
