"""NDJSON files under a view: found by resource type, and every line accounted for.

The fast way hands whole files to DuckDB in strict mode: one line that does not fit stops it. Then the careful way
goes through the same files in pieces, halves a piece that fails until the bad line stands alone, and names it by
file, line number and reason. Views look at one resource at a time, so the rows are the same either way.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import duckdb
import orjson
import pyarrow as pa

from connector.duckdb_lockdown import quoted
from connector.views.sql.compilation import LINE_FAULT, Plan
from connector.views.sql.execution import batches, locked, query_error, spooled
from connector.views.sql.limits import TIME_LIMIT_S, TimeLimit
from vht_federate.errors import InputError

__all__ = ["InvalidLine", "ReadingReport", "execute", "find_files"]

SUFFIXES = (".ndjson", ".ndjson.gz", ".ndjson.zst", ".jsonl", ".jsonl.gz")
PIECE = 4 * 1024 * 1024

Batches = Iterator[pa.RecordBatch]
Sink = Callable[[Batches], int]


@dataclass(frozen=True)
class InvalidLine:
    """A line that gave no rows: ``not-json``, ``not-a-resource`` or ``does-not-fit``: it cannot be read as FHIR's
    (``execution.run`` says what that is, and what passes)."""

    file: str
    line: int
    reason: str


@dataclass
class ReadingReport:
    """``lines == resources + other + len(faults)``; blank lines are not lines. ``rows`` is what the view gave."""

    lines: int = 0
    resources: int = 0
    other: int = 0
    rows: int = 0
    faults: list[InvalidLine] = field(default_factory=list)


def find_files(data: Path, resource: str) -> list[Path]:
    """The NDJSON files for ``resource``: ``data`` itself, or those in the folder that are named after the type
    (``Observation.ndjson``, ``Observation.000.ndjson.gz``), or all of them where none is.

    Raises: InputError VHT-INPUT-FILE where there is none.
    """
    if data.is_file():
        return [data]
    files = sorted(path for path in data.glob("*") if path.is_file() and path.name.endswith(SUFFIXES))
    named = [path for path in files if path.name[: len(resource) + 1] in {f"{resource}{mark}" for mark in ".-_"}]
    if not files:
        raise InputError(f"no NDJSON at {data}", code="VHT-INPUT-FILE", hint=f"expected {resource}.ndjson")
    return named or files


def execute(
    plan: Plan,
    files: Sequence[Path],
    sink: Sink,
    *,
    skip_bad_lines: bool = False,
    threads: int = 1,
    time_limit_s: float | None = TIME_LIMIT_S,
) -> ReadingReport:
    """Send the rows to ``sink`` (which returns how many it took; it is called anew where the fast way fails).

    Raises: InputError VHT-INPUT-FHIR-LINE naming the first bad lines, unless ``skip_bad_lines``; ViewError for what
    only data can show (VHT-VIEW-NOT-SINGLE), and VHT-VIEW-TIME where all of it takes longer than ``time_limit_s``.
    """
    limit = TimeLimit(time_limit_s)
    names = [_readable(path) for path in files]
    try:
        with locked(names, threads=threads, limit=limit) as connection:
            rows = sink(batches(plan, connection, names))
            return _counted(connection, names, plan, rows)
    except InputError as error:
        if error.code != LINE_FAULT:
            raise
    if not skip_bad_lines:
        _refuse_invalid_lines(plan, files, limit)
    report = ReadingReport()
    report.rows = sink(_BoundedReader(plan, report, limit).batches(files))
    return report


def _refuse_invalid_lines(plan: Plan, files: Sequence[Path], limit: TimeLimit) -> None:
    report = ReadingReport()
    for _ in _BoundedReader(plan, report, limit).batches(files):
        pass  # rows are not wanted: every line is looked at before any row is written
    if report.faults:
        first = ", ".join(f"{line.file}:{line.line} {line.reason}" for line in report.faults[:5])
        raise InputError(
            f"{len(report.faults)} of {report.lines} lines do not fit: {first}",
            code=LINE_FAULT,
            hint="mend them, or run with --skip-bad-lines to leave them out and have them counted",
        )


def _readable(path: Path) -> str:
    name = str(path.resolve())
    if set(name) & set("*?[]{}\x00"):  # DuckDB would take it for a pattern
        raise InputError("a file's name holds one of * ? [ ] { }", code="VHT-INPUT-FILE")
    return name


def _counted(connection: duckdb.DuckDBPyConnection, names: Sequence[str], plan: Plan, rows: int) -> ReadingReport:
    listed = ", ".join(quoted(name) for name in names)
    query = (
        'SELECT count(*), count(*) FILTER ("resourceType" = $1) FROM '  # noqa: S608
        f"read_json([{listed}], format = 'newline_delimited', columns = {{\"resourceType\": 'VARCHAR'}})"
    )
    try:
        lines, resources = connection.execute(query, [plan.resource]).fetchall()[0]
    except duckdb.Error as error:  # such as for what is nested deep in an element that the view does not read
        raise query_error(error) from None
    return ReadingReport(lines, resources, lines - resources, rows)


class _BoundedReader:
    """Goes through the files line by line, keeping ``report``."""

    def __init__(self, plan: Plan, report: ReadingReport, limit: TimeLimit) -> None:
        self._plan, self._report, self._limit = plan, report, limit

    def batches(self, files: Sequence[Path]) -> Batches:
        for path in files:
            piece: list[tuple[int, bytes]] = []
            size = 0
            for number, line in _lines(path):
                if self._wanted(path, number, line):
                    piece.append((number, line))
                    size += len(line)
                if size > PIECE:
                    yield from self._run(path, piece)
                    piece, size = [], 0
            yield from self._run(path, piece)

    def _wanted(self, path: Path, number: int, line: bytes) -> bool:
        self._report.lines += 1
        try:
            resource = orjson.loads(line)
        except ValueError:
            return self._fault(path, number, "not-json")
        kind_ = resource.get("resourceType") if isinstance(resource, dict) else None
        if not isinstance(kind_, str):
            return self._fault(path, number, "not-a-resource")
        if kind_ != self._plan.resource:
            self._report.other += 1
            return False
        return True

    def _fault(self, path: Path, number: int, reason: str) -> bool:
        self._report.faults.append(InvalidLine(path.name, number, reason))
        return False

    def _run(self, path: Path, piece: list[tuple[int, bytes]]) -> Batches:
        if not piece:
            return
        try:
            with spooled(line for _, line in piece) as name, locked([name], limit=self._limit) as connection:
                produced = list(batches(self._plan, connection, [name]))
        except InputError as error:
            if error.code != LINE_FAULT:
                raise
            if len(piece) == 1:
                self._fault(path, piece[0][0], "does-not-fit")
                return
            half = len(piece) // 2
            yield from self._run(path, piece[:half])
            yield from self._run(path, piece[half:])
            return
        self._report.resources += len(piece)
        yield from produced


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines that are not blank, decompressed by the file's suffix."""
    rest, number = b"", 0
    try:
        with pa.input_stream(str(path), compression="detect") as stream:
            while block := stream.read(1 << 20):
                *whole, rest = (rest + block).split(b"\n")
                for line in whole:
                    number += 1
                    if line.strip():
                        yield number, line
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path.name} cannot be read past line {number}", code="VHT-INPUT-FILE") from error
    if rest.strip():
        yield number + 1, rest
