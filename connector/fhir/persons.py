"""One human, one person: Patient records that say of each other that one replaced the other.

Records that links join, by whatever chain or circle, are one person. Its key is that of the record that stands, which
nothing replaces, be it held here or only named; where several stand, or none does (a circle), the smallest key of
them. Under one permit the person so keeps the pseudonym of the record that stands.

- **Split**: the largest bucket of all its ids, held or named. It depends on no order and no secret, and a new id never
  takes a person who trained a model to the side that tests it.
- **Patient**: each element from the record that stands, else from another that has it; dead if any says so, at the
  earliest moment that any names; active as the records that stand say. Where none of these is held, the others are the
  data of a person all the same, and active, unless one that stands was deleted at its source.
- Everything else is the person's, whichever id it names.

A link holds until a newer version of the Patient that said so does not say it any more; it outlives the deletion of
that Patient at its source, which is how a merge ends there: an opt-out under the old id goes on to hold.
"""

# ruff: noqa: S608 - SQL is put together from our own paths, quoted, and from constants.

from collections.abc import Callable, Collection, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from connector.duckdb_lockdown import quoted
from connector.fhir.store import Generation
from vht_federate.domain.split import is_test

__all__ = ["LINKS", "PERSONS", "accounts_of", "joined", "names_patient", "persons_of", "write_persons"]

LINKS, PERSONS = "patient_link", "person"
_PART = f"{PERSONS}-000001.parquet"  # one for each generation: it takes the place of the one before
_COLUMNS = ("resource", "survivor", "survivor_bucket", "replaced", "replaced_bucket")
_SCHEMA = pa.schema(
    [
        ("subject", pa.string()),
        ("person", pa.string()),
        ("survivor", pa.bool_()),
        ("held", pa.bool_()),
        ("deleted", pa.bool_()),
        ("own_bucket", pa.uint8()),
        ("bucket", pa.uint8()),
    ]
)
_OF_PATIENTS = """
SELECT r.* REPLACE (coalesce(p.person, r.subject) AS subject)
FROM ({rows}) r LEFT JOIN {persons} p ON p.subject = r.subject"""
_BEST = "ORDER BY {0} IS NULL, NOT p.survivor, r.subject"
_PATIENTS = f"""
SELECT r.* FROM ({{rows}}) r ANTI JOIN {{persons}} p USING (subject)
UNION ALL BY NAME
SELECT p.person AS subject, any_value(p.bucket) AS bucket,
    first(r.birth_date {_BEST.format("r.birth_date")}) AS birth_date,
    first(r.birth_date_partial {_BEST.format("r.birth_date")}) AS birth_date_partial,
    first(r.gender {_BEST.format("r.gender")}) AS gender,
    coalesce(bool_or(r.active) FILTER (p.survivor), NOT any_value(p.deleted)) AS active,
    bool_or(r.deceased) AS deceased, min(r.deceased_at) AS deceased_at,
    first(r.deceased_at_until ORDER BY r.deceased_at NULLS LAST, r.deceased_at_until) AS deceased_at_until {{further}}
FROM ({{rows}}) r JOIN {{persons}} p ON p.subject = r.subject GROUP BY p.person"""

Query = Callable[[str], list[tuple[Any, ...]]]
Link = tuple[str, int, str, int]  # survivor and its bucket, replaced and its bucket


# --- at intake --------------------------------------------------------------------------------------------------------


def write_persons(query: Query, before: Generation | None, fresh: Path, *, staged: str, number: int) -> None:
    """Links of Patients that were taken in take the place of what the same Patients said before; then the persons."""
    restated = "SELECT resource FROM verdict WHERE verdict = 'accepted' AND type = 'Patient'"
    parts: list[Path] = []
    for part in before.parts(LINKS) if before else []:
        old = f"read_parquet({quoted(part)})"
        parts.append(part)
        if query(f"SELECT 1 FROM {old} SEMI JOIN ({restated}) USING (resource) LIMIT 1"):
            parts[-1] = fresh / part.name
            _copy(query, f"SELECT * FROM {old} ANTI JOIN ({restated}) USING (resource)", parts[-1])
    added = f"FROM {staged} s JOIN verdict v ON s.file = v.file AND s.line = v.line WHERE verdict = 'accepted'"
    if query(f"SELECT 1 {added} LIMIT 1"):
        parts.append(fresh / f"{LINKS}-{number:06d}.parquet")
        _copy(query, f"SELECT {', '.join(f's.{name}' for name in _COLUMNS)} {added} ORDER BY ALL", parts[-1])
    if parts:
        said = f"read_parquet([{', '.join(map(quoted, parts))}])"
        links = query(f"SELECT DISTINCT survivor, survivor_bucket, replaced, replaced_bucket FROM {said} ORDER BY ALL")
        deleted = {subject for (subject,) in query("SELECT subject FROM buried WHERE type = 'Patient'")}
        rows = _persons(links, _held(query, before, fresh, said), deleted)
        pq.write_table(pa.Table.from_pylist(rows, schema=_SCHEMA), fresh / _PART, compression="zstd")


def _copy(query: Query, select: str, part: Path) -> None:
    query(f"COPY ({select}) TO {quoted(part)} (FORMAT parquet, COMPRESSION zstd)")


def _held(query: Query, before: Generation | None, fresh: Path, said: str) -> set[str]:
    """Of the ids that links name, those of Patients of the new generation."""
    older = {part.name: part for part in (before.parts("patient") if before else [])}
    parts = older | {part.name: part for part in fresh.glob("patient-[0-9]*.parquet")}
    named = f"SELECT survivor AS subject FROM {said} UNION SELECT replaced FROM {said}"
    held = (
        query(f"SELECT subject FROM read_parquet({quoted(part)}) SEMI JOIN ({named}) USING (subject)")
        for part in parts.values()
    )
    return {subject for rows in held for (subject,) in rows}


def _persons(links: Iterable[Link], held: Collection[str], deleted: Collection[str]) -> list[dict[str, Any]]:
    """A row for every id that a link names; ``held`` and ``deleted`` are ids of Patients that are."""
    root: dict[str, str] = {}
    buckets: dict[str, int] = {}
    replaced_ids: set[str] = set()
    for survivor, survivor_bucket, replaced, replaced_bucket in links:
        buckets |= {survivor: survivor_bucket, replaced: replaced_bucket}
        replaced_ids.add(replaced)
        first, second = sorted((_root(root, survivor), _root(root, replaced)))
        root[second] = first
    groups: dict[str, list[str]] = {}
    for subject in sorted(buckets):
        groups.setdefault(_root(root, subject), []).append(subject)
    rows = []
    for ids in groups.values():
        standing = [subject for subject in ids if subject not in replaced_ids]
        shared = {
            "person": (standing or ids)[0],
            "bucket": max(buckets[subject] for subject in ids),
            "deleted": any(subject in deleted for subject in standing),
        }
        rows += [
            shared
            | {
                "subject": subject,
                "survivor": subject not in replaced_ids,
                "held": subject in held,
                "own_bucket": buckets[subject],
            }
            for subject in ids
        ]
    return rows


def _root(root: dict[str, str], subject: str) -> str:
    """The representative of what is joined so far; the way to it is halved for who comes next."""
    while (above := root.setdefault(subject, subject)) != subject:
        root[subject] = root[above]
        subject = above
    return subject


# --- from the store ---------------------------------------------------------------------------------------------------


def persons_of(generation: Generation, subjects: Collection[str]) -> set[str]:
    """The person of each of ``subjects``: itself, where no link names it."""
    person = {row["subject"]: row["person"] for row in _rows(generation)}
    return {person.get(subject, subject) for subject in subjects}


def accounts_of(generation: Generation, persons: Collection[str]) -> dict[str, list[str]]:
    """Of those of ``persons`` that have several ids, the ids that a budget is counted under: all on the person's side
    of the split. There is one, since the person's bucket is that of one of them; under the others nothing was spent
    that the person's side spends."""
    ids: dict[str, list[str]] = {}
    for row in _rows(generation):
        if row["person"] in persons and is_test(row["own_bucket"]) == is_test(row["bucket"]):
            ids.setdefault(row["person"], []).append(row["subject"])
    return ids


def names_patient(generation: Generation, subject: str) -> bool:
    """Whether a Patient that was taken in says that this id is of the same human."""
    return any(row["subject"] == subject for row in _rows(generation))


def _rows(generation: Generation) -> Iterable[dict[str, Any]]:
    for part in generation.parts(PERSONS):
        yield from pq.read_table(part).to_pylist()


def joined(generation: Generation, table: str, rows: str, *, further: str = "") -> str:
    """``rows``, a SELECT over the parts of ``table``, with the person in place of the id in ``subject``; of Patients
    one row for each person, with ``further`` aggregates over those rows (``r``). Without links, ``rows`` as they are.
    """
    parts = generation.parts(PERSONS)
    if not parts:
        return rows
    form = _PATIENTS if table == "patient" else _OF_PATIENTS
    return form.format(rows=rows, persons=f"read_parquet({quoted(parts[0])})", further=further)
