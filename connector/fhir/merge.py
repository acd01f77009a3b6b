"""Second pass of an ingest: what is new, what repeats, what contradicts; and the files of the next generation.

DuckDB does the joins over staged Parquet and spills what does not fit, so memory stays bounded however large the
store is.
"""

# ruff: noqa: S608 - SQL is put together from our own paths, quoted, and from constants; values are parameters.

import shutil
from collections import Counter
from dataclasses import dataclass
from dataclasses import replace as with_fields
from pathlib import Path
from typing import Any

import duckdb
import orjson

from connector.duckdb_lockdown import locked, quoted
from connector.fhir.dangling_references import dangling_references
from connector.fhir.deletions import TABLE, bury, write_tombstones
from connector.fhir.ingest_report import FileReport, IngestReport, sorted_counts
from connector.fhir.medication_resolution import PRESCRIPTIONS, gather_codes, hold_back, revise_prescriptions
from connector.fhir.merge_rules import FAULTS, FILES, GONE, LATE, NOTHING_SEEN, ROWS, SEEN, VERDICTS
from connector.fhir.persons import LINKS, write_persons
from connector.fhir.resources import KEPT, TABLES
from connector.fhir.staging import Staging
from connector.fhir.store import Generation, Store, table_name

__all__ = ["settle"]

_ACCEPTED_BY_TYPE = "SELECT type, count(*) FROM verdict WHERE verdict = 'accepted' GROUP BY type"
_LISTED = "dataset, file, line, kind, reason, path"
# Two components of one Observation may fail in the same way: what is alike within a line is numbered.
_NTH = f"row_number() OVER (PARTITION BY {_LISTED}) AS nth"
_LISTED_TYPES = {name: "BIGINT" if name == "line" else "VARCHAR" for name in _LISTED.split(", ")}


@dataclass(frozen=True)
class _Merge:
    connection: duckdb.DuckDBPyConnection
    staging: Staging
    before: Generation | None
    fresh: Path
    dataset: str
    names: list[str]

    def rows(self, sql: str, parameters: list[Any] | None = None) -> list[tuple[Any, ...]]:
        rows: list[tuple[Any, ...]] = self.connection.execute(sql, parameters or []).fetchall()
        return rows

    def staged(self, table: str, *, numbered: bool = False) -> str:
        return f"read_parquet({quoted(self.staging.path(table))}, file_row_number = {numbered})"

    def judge(self) -> None:
        parts = self.before.parts("resource") if self.before else []
        seen = SEEN.format(parts=", ".join(map(quoted, parts))) if parts else NOTHING_SEEN
        lines, prescriptions = self.staged("line"), self.staged("medication_request")
        bury(self.rows, self.before, deletions=self.staged("deletion"), lines=lines, seen=seen)
        lines = hold_back(self.rows, self.before, lines=lines, prescriptions=prescriptions, seen=seen)
        self.rows(VERDICTS.format(staged=lines, seen=seen))
        self.rows(LATE.format(staged=lines))
        self.rows(GONE)
        gather_codes(self.rows, self.before, medications=self.staged("medication", numbered=True))
        self.rows(FAULTS.format(staged=self.staged("fault")))
        self.rows("CREATE TEMP TABLE source (file INTEGER, name VARCHAR)")
        if self.names:
            self.connection.executemany("INSERT INTO source VALUES (?, ?)", list(enumerate(self.names)))

    @property
    def number(self) -> int:
        """Of the parts that are written."""
        return self.before.number + 1 if self.before else 1

    def write_parts(self) -> None:
        number = self.number
        accepted = "FROM verdict WHERE verdict = 'accepted' ORDER BY file, line"
        replaced = "CASE WHEN known IS NULL THEN 0 ELSE coalesce(replaced, 0) + 1 END AS replaced"
        columns = f"type, resource, content, ? AS dataset, updated, version, {replaced}"
        self._copy(f"SELECT {columns} {accepted}", "resource", number, [self.dataset])
        for table in map(table_name, KEPT):
            rows = PRESCRIPTIONS if table == "medication_request" else ROWS
            self._copy(rows.format(staged=self.staged(table, numbered=True)), table, number, [])

    def _copy(self, select: str, table: str, number: int, parameters: list[Any]) -> None:
        part = self.fresh / f"{table}-{number:06d}.parquet"
        [(count,)] = self.rows(f"COPY ({select}) TO {quoted(part)} (FORMAT parquet, COMPRESSION zstd)", parameters)
        if not count and self.before:
            part.unlink()

    def write_survivors(self) -> dict[str, int]:
        """Older parts without what gave way to a newer version; the count of that by type."""
        gone = dict(self.rows("SELECT type, count(*) FROM gone GROUP BY type"))
        tables = ["resource", *map(table_name, gone)] if gone and self.before else []
        for part in (part for table in tables for part in self.before.parts(table)):  # type: ignore[union-attr]
            [(count,)] = self.rows(f"SELECT count(*) FROM read_parquet({quoted(part)}) SEMI JOIN gone USING (resource)")
            if count:
                survivors = f"SELECT p.* FROM read_parquet({quoted(part)}) p ANTI JOIN gone USING (resource)"
                self.rows(f"COPY ({survivors}) TO {quoted(self.fresh / part.name)} (FORMAT parquet, COMPRESSION zstd)")
                shutil.copystat(part, self.fresh / part.name)  # its time says when this was taken in
        revise_prescriptions(self.rows, self.before, self.fresh)
        return gone

    def dangling(self) -> dict[str, int]:
        """References of what was accepted to what is not held now."""
        held = {table: self._standing(table) for table in ("patient", "encounter")}
        written = {table: self.fresh / f"{table}-{self.number:06d}.parquet" for table in map(table_name, TABLES)}
        return dangling_references(self.rows, held, {table: part for table, part in written.items() if part.exists()})

    def _standing(self, table: str) -> list[Path]:
        """The parts of ``table`` in the next generation, where they lie now."""
        old = {part.name: part for part in self.before.parts(table)} if self.before else {}
        return list((old | {part.name: part for part in self.fresh.glob(f"{table}-[0-9]*.parquet")}).values())

    def write_persons(self) -> None:
        """Which ids are of one human, by what Patients say, or said before they were deleted."""
        write_persons(self.rows, self.before, self.fresh, staged=self.staged(LINKS), number=self.number)

    def write_tombstones(self) -> bool:
        """True where something is known to be deleted that was not before."""
        part = self.fresh / f"{TABLE}-{self.number:06d}.parquet"
        return write_tombstones(self.rows, self.before, deletions=self.staged("deletion"), part=part)

    def write_quarantine(self) -> bool:
        """Old entries and new ones, each as often as the line has it. True where the list grew."""
        old, path = self._old_quarantine(), self.fresh / "quarantine.jsonl"
        entries = f"SELECT *, {_NTH} FROM (SELECT ? AS dataset, name AS file, line, kind, reason, path "
        entries += "FROM fault JOIN source USING (file))"
        if old:
            columns = f"{{{', '.join(f'{name}: {quoted(kind)}' for name, kind in _LISTED_TYPES.items())}}}"
            listed = f"read_json({quoted(old)}, format = 'newline_delimited', columns = {columns})"
            entries += f" UNION SELECT {_LISTED}, {_NTH} FROM {listed}"
        distinct_entries = f"SELECT {_LISTED} FROM (SELECT DISTINCT * FROM ({entries})) ORDER BY {_LISTED}"
        self.rows(f"COPY ({distinct_entries}) TO {quoted(path)} (FORMAT json)", [self.dataset])
        return path.stat().st_size > (old.stat().st_size if old else 0)

    def _old_quarantine(self) -> Path | None:
        path = self.before.folder / "quarantine.jsonl" if self.before else None
        return path if path and path.stat().st_size else None

    def write_counts(self, gone: dict[str, int]) -> None:
        counts = Counter(self.before.counts() if self.before else {})
        counts.update(dict(self.rows(_ACCEPTED_BY_TYPE)))
        counts.subtract(gone)
        (self.fresh / "counts.json").write_bytes(orjson.dumps(sorted_counts(counts)))

    def report(self, changed: bool) -> IngestReport:
        """The account, but for how many patients the store then holds."""
        verdicts = dict(self.rows("SELECT verdict, count(*) FROM verdict GROUP BY verdict"))
        by_type = Counter(dict(self.rows(_ACCEPTED_BY_TYPE)))
        [(values, rejected, mistaken, replaced)] = self.rows(
            "SELECT coalesce(sum(accepted), 0), coalesce(sum(quarantined), 0), count(*) FILTER (mistaken), "
            "count(known) FROM verdict WHERE verdict = 'accepted'"
        )
        [(deleted,)] = self.rows("SELECT count(*) FROM left_store")
        reasons = self._reasons("line")
        files = self._files()
        return IngestReport(
            dataset=self.dataset,
            lines=sum(file.lines for file in files),
            accepted=verdicts.get("accepted", 0),
            quarantined=sum(reasons.values()),
            duplicate=verdicts.get("duplicate", 0),
            superseded=verdicts.get("superseded", 0),
            replaced=replaced,
            entered_in_error=mistaken,
            deleted=deleted,
            values_accepted=int(values),
            values_quarantined=int(rejected),
            reasons=sorted_counts(reasons),
            value_reasons=sorted_counts(self._reasons("value")),
            by_type=sorted_counts(by_type),
            patients=0,
            changed=changed,
            by_file=files,
            dangling_references=self.dangling(),
        )

    def _reasons(self, kind: str) -> Counter[str]:
        return Counter(dict(self.rows("SELECT reason, count(*) FROM fault WHERE kind = ? GROUP BY reason", [kind])))

    def _files(self) -> tuple[FileReport, ...]:
        return tuple(FileReport(*row) for row in self.rows(FILES))


def settle(
    staging: Staging, store: Store, work: Path, dataset: str, names: list[str], *, replace: bool = False
) -> IngestReport:
    """Compare what was staged with what the store holds; publish a new generation where something is new.

    ``replace`` compares with nothing: the new generation holds what was staged, and no more.
    """
    before, fresh, spill = None if replace else store.current(), work / "fresh", work / "spill"
    fresh.mkdir(mode=0o700)
    with locked([store.folder.resolve()], spill=spill) as connection:
        merge = _Merge(connection, staging, before, fresh, dataset, names)
        merge.judge()
        merge.write_parts()
        grew = merge.write_quarantine()
        merge.write_counts(merge.write_survivors())
        merge.write_persons()
        buried = merge.write_tombstones()
        accepted = merge.rows("FROM verdict WHERE verdict = 'accepted' LIMIT 1")
        changed = before is None or grew or buried or bool(accepted)
        report = merge.report(changed)
    generation = store.publish(fresh, beside_old=not replace) if changed else before
    return with_fields(report, patients=generation.patients() if generation else 0)
