"""Second pass of an ingest: what is new, what repeats, what contradicts; and the files of the next generation.

DuckDB does the joins over staged Parquet and spills what does not fit, so memory stays bounded however large the
store is.
"""

# ruff: noqa: S608 - SQL is put together from our own paths, quoted, and from constants; values are parameters.

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import orjson

from connector.fhir.engine import locked, quoted
from connector.fhir.report import FileReport, IngestReport, sorted_counts
from connector.fhir.resources import TABLES
from connector.fhir.staging import Staging
from connector.fhir.store import Generation, Store, table_name

__all__ = ["settle"]

# One verdict per staged line. The first content seen under a key stands: a repetition is a duplicate, another
# content under the same key is a contradiction that only the hospital can settle.
_VERDICTS = """
CREATE TEMP TABLE verdict AS
SELECT s.*, CASE
    WHEN content <> coalesce(k.known, first_value(content) OVER same) THEN 'conflict'
    WHEN k.known IS NOT NULL OR row_number() OVER same > 1 THEN 'duplicate'
    ELSE 'accepted' END AS verdict
FROM {staged} s LEFT JOIN (SELECT resource, content AS known FROM {seen}) k USING (resource)
WINDOW same AS (PARTITION BY s.resource ORDER BY s.file, s.line)
"""
_FAULTS = """
CREATE TEMP TABLE fault AS
SELECT file, line, kind, reason, path FROM {staged} WHERE kind <> 'value'
UNION ALL
SELECT file, line, 'line', 'conflicting-content', type || '.id' FROM verdict WHERE verdict = 'conflict'
UNION ALL
SELECT f.file, f.line, kind, reason, path FROM {staged} f JOIN verdict v ON f.file = v.file AND f.line = v.line
WHERE kind = 'value' AND verdict = 'accepted'
"""
_NOTHING_SEEN = "(SELECT NULL::VARCHAR AS resource, NULL::VARCHAR AS content)"
_ACCEPTED_BY_TYPE = "SELECT type, count(*) FROM verdict WHERE verdict = 'accepted' GROUP BY type"
_LISTED = "dataset, file, line, kind, reason, path"
_LISTED_TYPES = {name: "BIGINT" if name == "line" else "VARCHAR" for name in _LISTED.split(", ")}
_FILES = """
SELECT name, coalesce(a, 0) + coalesce(d, 0) + coalesce(q, 0), coalesce(a, 0), coalesce(q, 0), coalesce(d, 0),
    CASE WHEN empty > 0 THEN 'empty' ELSE coalesce(cut, 'ok') END
FROM source
LEFT JOIN (
    SELECT file, count(*) FILTER (verdict = 'accepted') AS a, count(*) FILTER (verdict = 'duplicate') AS d
    FROM verdict GROUP BY file) USING (file)
LEFT JOIN (
    SELECT file, count(*) FILTER (kind = 'line') AS q, count(*) FILTER (reason = 'empty-file') AS empty,
        max(reason) FILTER (reason IN ('gzip-truncated', 'gzip-corrupt', 'unreadable-file')) AS cut
    FROM fault GROUP BY file) USING (file)
ORDER BY name
"""


@dataclass(frozen=True)
class _Settling:
    connection: duckdb.DuckDBPyConnection
    staging: Staging
    before: Generation | None
    fresh: Path
    dataset: str
    names: list[str]

    def rows(self, sql: str, parameters: list[Any] | None = None) -> list[tuple[Any, ...]]:
        found: list[tuple[Any, ...]] = self.connection.execute(sql, parameters or []).fetchall()
        return found

    def staged(self, table: str) -> str:
        return f"read_parquet({quoted(self.staging.path(table))})"

    def judge(self) -> None:
        parts = self.before.parts("resource") if self.before else []
        seen = f"read_parquet([{', '.join(map(quoted, parts))}])" if parts else _NOTHING_SEEN
        self.rows(_VERDICTS.format(staged=self.staged("line"), seen=seen))
        self.rows(_FAULTS.format(staged=self.staged("fault")))
        self.rows("CREATE TEMP TABLE source (file INTEGER, name VARCHAR)")
        if self.names:
            self.connection.executemany("INSERT INTO source VALUES (?, ?)", list(enumerate(self.names)))

    def write_parts(self) -> None:
        number = self.before.number + 1 if self.before else 1
        accepted = "FROM verdict WHERE verdict = 'accepted' ORDER BY file, line"
        self._copy(f"SELECT type, resource, content, ? AS dataset {accepted}", "resource", number, [self.dataset])
        for table in map(table_name, TABLES):
            rows = (
                f"SELECT s.* EXCLUDE (file, line) FROM {self.staged(table)} s JOIN verdict v "
                "ON s.file = v.file AND s.line = v.line WHERE verdict = 'accepted' ORDER BY s.file, s.line"
            )
            self._copy(rows, table, number, [])

    def _copy(self, select: str, table: str, number: int, parameters: list[Any]) -> None:
        part = self.fresh / f"{table}-{number:06d}.parquet"
        [(count,)] = self.rows(f"COPY ({select}) TO {quoted(part)} (FORMAT parquet, COMPRESSION zstd)", parameters)
        if not count and self.before:
            part.unlink()

    def write_quarantine(self) -> bool:
        """Old entries and new ones, each once. True where the list grew."""
        old, path = self._old_quarantine(), self.fresh / "quarantine.jsonl"
        entries = "SELECT ? AS dataset, name AS file, line, kind, reason, path FROM fault JOIN source USING (file)"
        if old:
            columns = f"{{{', '.join(f'{name}: {quoted(kind)}' for name, kind in _LISTED_TYPES.items())}}}"
            entries += f" UNION FROM read_json({quoted(old)}, format = 'newline_delimited', columns = {columns})"
        listed = f"SELECT DISTINCT {_LISTED} FROM ({entries}) ORDER BY {_LISTED}"
        self.rows(f"COPY ({listed}) TO {quoted(path)} (FORMAT json)", [self.dataset])
        return path.stat().st_size > (old.stat().st_size if old else 0)

    def _old_quarantine(self) -> Path | None:
        path = self.before.folder / "quarantine.jsonl" if self.before else None
        return path if path and path.stat().st_size else None

    def write_counts(self) -> dict[str, int]:
        counts = Counter(self.before.counts() if self.before else {})
        counts.update(dict(self.rows(_ACCEPTED_BY_TYPE)))
        (self.fresh / "counts.json").write_bytes(orjson.dumps(sorted_counts(counts)))
        return dict(counts)

    def report(self, patients: int, changed: bool) -> IngestReport:
        verdicts = dict(self.rows("SELECT verdict, count(*) FROM verdict GROUP BY verdict"))
        by_type = Counter(dict(self.rows(_ACCEPTED_BY_TYPE)))
        [(values, rejected)] = self.rows(
            "SELECT coalesce(sum(accepted), 0), coalesce(sum(quarantined), 0) FROM verdict WHERE verdict = 'accepted'"
        )
        reasons = self._reasons("line")
        files = self._files()
        return IngestReport(
            dataset=self.dataset,
            lines=sum(file.lines for file in files),
            accepted=verdicts.get("accepted", 0),
            quarantined=sum(reasons.values()),
            duplicate=verdicts.get("duplicate", 0),
            values_accepted=int(values),
            values_quarantined=int(rejected),
            reasons=sorted_counts(reasons),
            value_reasons=sorted_counts(self._reasons("value")),
            by_type=sorted_counts(by_type),
            patients=patients,
            changed=changed,
            by_file=files,
        )

    def _reasons(self, kind: str) -> Counter[str]:
        return Counter(dict(self.rows("SELECT reason, count(*) FROM fault WHERE kind = ? GROUP BY reason", [kind])))

    def _files(self) -> tuple[FileReport, ...]:
        return tuple(FileReport(*row) for row in self.rows(_FILES))


def settle(
    staging: Staging, store: Store, work: Path, dataset: str, names: list[str], *, replace: bool = False
) -> IngestReport:
    """Compare what was staged with what the store holds; publish a new generation where something is new.

    ``replace`` compares with nothing: the new generation holds what was staged, and no more.
    """
    before, fresh, spill = None if replace else store.current(), work / "fresh", work / "spill"
    fresh.mkdir(mode=0o700)
    with locked([store.folder.resolve()], spill=spill) as connection:
        settling = _Settling(connection, staging, before, fresh, dataset, names)
        settling.judge()
        settling.write_parts()
        grew = settling.write_quarantine()
        counts = settling.write_counts()
        changed = before is None or grew or bool(settling.rows("FROM verdict WHERE verdict = 'accepted' LIMIT 1"))
        report = settling.report(counts.get("Patient", 0), changed)
    if changed:
        store.publish(fresh, beside_old=not replace)
    return report
