"""The files under a view: which of a folder it reads, and every line accounted for.

The fast way hands whole files of NDJSON to DuckDB in strict mode: one line that does not fit stops it. Then the careful
way goes through the same files in pieces, halves a piece that fails until the bad line stands alone, and names it by
file, line number and reason. Bundles are always read the careful way, each entry a line. Views look at one resource at
a time, so the rows are the same either way.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import duckdb
import orjson
import pyarrow as pa

from connector.duckdb_lockdown import quoted
from connector.fhir.r4.elements import is_resource
from connector.fhir.source_folder import Folder, Ignored, look_into, read_file
from connector.views.sql.compilation import LINE_FAULT, Plan
from connector.views.sql.execution import batches, locked, query_error, spooled
from connector.views.sql.limits import TIME_LIMIT_S, TimeLimit
from vht_federate.domain.export_files import BYTE_ORDER_MARK, may_be_bundle
from vht_federate.errors import InputError

__all__ = ["InvalidLine", "ReadingReport", "execute", "find_files"]

PIECE = 4 * 1024 * 1024

Batches = Iterator[pa.RecordBatch]
Sink = Callable[[Batches], int]


@dataclass(frozen=True)
class InvalidLine:
    """A line that gave no rows: ``not-json``, ``not-a-resource`` or ``does-not-fit``: it cannot be read as FHIR's
    (``execution.run`` says what that is, and what passes). Of a Bundle also what ``bundles.read_bundle`` says."""

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


def find_files(data: Path, resource: str) -> Folder:
    """The files to read for ``resource``: ``data`` itself, or what intake would read of that folder, without files
    whose name speaks of other resource types alone (``Observation.000.ndjson`` for a view over Patient); those are in
    ``ignored`` as ``other-type``. Where every name does, all are read.

    Raises: InputError VHT-INPUT-FILE where there is none.
    """
    if data.is_file():
        return Folder((data,), ())
    folder = look_into(data) if data.is_dir() else Folder((), ())
    if not folder.files:
        raise InputError(f"no NDJSON at {data}", code="VHT-INPUT-FILE", hint=f"expected {resource}.ndjson")
    wanted = tuple(path for path in folder.files if _may_hold(path.name, resource))
    if not wanted:
        return folder
    passed_over = [Ignored(path.name, "other-type") for path in folder.files if path not in wanted]
    return Folder(wanted, tuple(sorted([*folder.ignored, *passed_over], key=lambda entry: entry.name)))


def _may_hold(name: str, resource: str) -> bool:
    types = {word for word in re.split(r"[^A-Za-z]", name) if is_resource(word)}
    return not types or resource in types


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
    bundles = [path for path in files if may_be_bundle(path.name)]
    names = [_readable(path) for path in files if path not in bundles]
    report = ReadingReport()
    if not skip_bad_lines:
        _refuse_invalid_lines(plan, bundles, limit)
    try:
        with locked(names, threads=threads, limit=limit) as connection:
            entries = _BoundedReader(plan, report, limit).batches(bundles)
            report.rows = sink(chain(batches(plan, connection, names) if names else (), entries))
            if names:
                _count(connection, names, plan, report)
            return report
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


def _count(connection: duckdb.DuckDBPyConnection, names: Sequence[str], plan: Plan, report: ReadingReport) -> None:
    """Add the lines of files that were read the fast way."""
    listed = ", ".join(quoted(name) for name in names)
    query = (
        'SELECT count(*), count(*) FILTER ("resourceType" = $1) FROM '  # noqa: S608
        f"read_json([{listed}], format = 'newline_delimited', columns = {{\"resourceType\": 'VARCHAR'}})"
    )
    try:
        lines, resources = connection.execute(query, [plan.resource]).fetchall()[0]
    except duckdb.Error as error:  # such as for what is nested deep in an element that the view does not read
        raise query_error(error) from None
    report.lines += lines
    report.resources += resources
    report.other += lines - resources


class _BoundedReader:
    """Goes through the files line by line, keeping ``report``."""

    def __init__(self, plan: Plan, report: ReadingReport, limit: TimeLimit) -> None:
        self._plan, self._report, self._limit = plan, report, limit

    def batches(self, files: Sequence[Path]) -> Batches:
        for path in files:
            piece: list[tuple[int, bytes]] = []
            size = 0
            for number, line, fault in _entries(path) if may_be_bundle(path.name) else _lines(path):
                if self._wanted(path, number, line, fault):
                    piece.append((number, line))
                    size += len(line)
                if size > PIECE:
                    yield from self._run(path, piece)
                    piece, size = [], 0
            yield from self._run(path, piece)

    def _wanted(self, path: Path, number: int, line: bytes, fault: str | None) -> bool:
        self._report.lines += 1
        if fault is not None:
            return self._fault(path, number, fault)
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


_Numbered = Iterator[tuple[int, bytes, str | None]]


def _entries(path: Path) -> _Numbered:
    return ((entry.number, entry.content, entry.fault) for entry in read_file(path))


def _lines(path: Path) -> _Numbered:
    """Numbered lines that are not blank, decompressed by the file's suffix."""
    rest, number = b"", 0
    try:
        with pa.input_stream(str(path), compression=_PACKED.get(path.suffix.lower())) as stream:
            while block := stream.read(1 << 20):
                *whole, rest = (rest + block).split(b"\n")
                for line in whole:
                    number += 1
                    if number == 1:
                        line = line.removeprefix(BYTE_ORDER_MARK)
                    if line.strip():
                        yield number, line, None
    except (OSError, pa.ArrowException) as error:
        raise InputError(f"{path.name} cannot be read past line {number}", code="VHT-INPUT-FILE") from error
    if number == 0:
        rest = rest.removeprefix(BYTE_ORDER_MARK)
    if rest.strip():
        yield number + 1, rest, None


_PACKED = {".gz": "gzip", ".zst": "zstd"}
