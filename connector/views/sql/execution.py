"""Runs compiled views on a DuckDB that can read the named files and nothing else.

The lock is set in the one order that holds: ``allowed_paths``, then ``enable_external_access = false``, then
``lock_configuration = true``; from then on no file, no network, no extension, no setting is within a query's reach.
"""

import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import orjson
import pyarrow as pa

from connector import duckdb_lockdown
from connector.fhir.r4.elements import kind
from connector.views.sql.compilation import LINE_FAULT, Plan, compile_view
from connector.views.sql.limits import TIME_LIMIT_S, TimeLimit, over_time
from vht_federate.errors import InputError, ViewError

__all__ = [
    "DEFAULT_MEMORY",
    "MAX_BYTES",
    "MAX_ROWS",
    "arrow_schema",
    "batches",
    "batches_over",
    "explain",
    "locked",
    "prove",
    "query_error",
    "run",
    "run_over",
    "run_plan",
    "spooled",
]

DEFAULT_MEMORY = "2GB"
MAX_ROWS = 1_000_000
MAX_BYTES = 1 << 30  # of rows as Python values, about
CELL_BYTES, TREE = 100, 10  # a value beside its content; parsed JSON beside its text
_ARROW = {"boolean": pa.bool_(), "integer": pa.int64(), "decimal": pa.float64()}


@contextmanager
def locked(
    files: Sequence[str], *, threads: int = 1, memory: str = DEFAULT_MEMORY, limit: TimeLimit | None = None
) -> Iterator[duckdb.DuckDBPyConnection]:
    """An in-memory DuckDB that can open ``files`` alone, and is interrupted at ``limit``."""
    with (
        duckdb_lockdown.locked(files=files, threads=threads, memory=memory) as connection,
        (limit or TimeLimit(None)).on(connection),
    ):
        yield connection


@contextmanager
def spooled(lines: Iterable[bytes]) -> Iterator[str]:
    """The path of a file with these lines: in memory where the system has such files, else private and removed."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("vht-view")
        with os.fdopen(descriptor, "wb") as file:
            _write(file, lines)
            yield f"/proc/self/fd/{descriptor}"
    else:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "resources.ndjson"
            with path.open("wb") as file:
                _write(file, lines)
            yield str(path)


def _write(file: Any, lines: Iterable[bytes]) -> None:
    for line in lines:
        file.write(line)
        file.write(b"\n")
    file.flush()


def query_error(error: Exception) -> ViewError | InputError:
    """What DuckDB raised, itself or through Arrow, without its message: that may quote a value of a patient."""
    text = str(error)
    for code in ("VHT-VIEW-NOT-SINGLE", "VHT-VIEW-DEPTH"):
        if code in text:
            place = text.split(code, 1)[1].split("\n")[0].strip()
            message = "more than one value" if code.endswith("SINGLE") else "the walk goes too deep"
            hint = 'take first(), or set "collection": true' if code.endswith("SINGLE") else ""
            return ViewError(f"{place}: {message}", code=code, hint=hint)
    if text.startswith(("Invalid Input Error", "Conversion Error")):
        return InputError("a line is no FHIR resource as the view reads it", code=LINE_FAULT)
    if text.startswith("INTERRUPT Error"):
        return over_time()
    if text.startswith("Out of Memory Error"):
        return InputError("the view needs more memory than it is allowed", code="VHT-INPUT-MEMORY")
    if text.startswith("IO Error"):
        return InputError("a file cannot be read to its end", code="VHT-INPUT-FILE")
    if text.startswith("Out of Range Error"):
        return ViewError("a number leaves its range", code="VHT-VIEW-RANGE")
    return ViewError("the view does not run", code="VHT-VIEW-QUERY")


def arrow_schema(plan: Plan) -> pa.Schema:
    """The rows' types: lists for collections, text for dates (FHIR's may be partial) and for JSON."""
    types = [(column.name, _ARROW.get(kind(column.type), pa.string()), column.collection) for column in plan.columns]
    return pa.schema([(name, pa.list_(type_) if many else type_) for name, type_, many in types])


def batches(
    plan: Plan, connection: duckdb.DuckDBPyConnection, files: Sequence[str], *, rows: int = 65536
) -> Iterator[pa.RecordBatch]:
    """The rows as they come, in the order of the resources. Raises: what ``query_error`` makes of DuckDB's errors."""
    return _batches(plan, connection, plan.query(files), rows, None)


def batches_over(
    plan: Plan,
    connection: duckdb.DuckDBPyConnection,
    relation: str,
    *,
    rows: int = 65536,
    parameters: Mapping[str, Any] | None = None,
) -> Iterator[pa.RecordBatch]:
    """The same over ``relation`` (``Plan.query_over``), such as ``connector.fhir.rendering.relation`` gives."""
    return _batches(plan, connection, plan.query_over(relation), rows, parameters)


def _batches(
    plan: Plan,
    connection: duckdb.DuckDBPyConnection,
    query: str,
    rows: int,
    parameters: Mapping[str, Any] | None,
) -> Iterator[pa.RecordBatch]:
    schema = arrow_schema(plan)
    try:
        for macro in plan.macros:
            connection.execute(macro)
        for batch in connection.sql(query, params=dict(parameters) if parameters else None).to_arrow_reader(rows):
            yield batch.cast(schema)
    except (duckdb.Error, OSError, pa.ArrowException) as error:
        raise query_error(error) from None


def run_plan(
    plan: Plan,
    connection: duckdb.DuckDBPyConnection,
    files: Sequence[str],
    *,
    max_rows: int = MAX_ROWS,
    max_bytes: int = MAX_BYTES,
) -> list[dict[str, Any]]:
    """Rows keyed by column name. Raises: ViewError VHT-VIEW-LIMIT beyond ``max_rows``, for siblings multiply, or about
    ``max_bytes`` of memory, for columns do."""
    return _collected(plan, batches(plan, connection, files, rows=_at_once(plan)), max_rows, max_bytes)


def run_over(
    plan: Plan,
    connection: duckdb.DuckDBPyConnection,
    relation: str,
    *,
    max_rows: int = MAX_ROWS,
    max_bytes: int = MAX_BYTES,
    parameters: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """The same over ``relation`` instead of files."""
    record_batches = batches_over(plan, connection, relation, rows=_at_once(plan), parameters=parameters)
    return _collected(plan, record_batches, max_rows, max_bytes)


def _at_once(plan: Plan) -> int:
    """Rows of one batch: fewer where each is wide, so that a limit is noticed before much is in memory."""
    return max(16, min(4096, 65_536 // max(1, len(plan.columns))))


def _weight(plan: Plan, batch: pa.RecordBatch) -> int:
    """About what the values of a batch take in Python, in bytes."""
    weight = 0
    for column, cells in zip(plan.columns, batch.columns, strict=True):
        listed = len(cells.flatten()) if pa.types.is_list(cells.type) else 0
        weight += (len(cells) + listed) * CELL_BYTES + cells.nbytes * (TREE if column.json else 1)
    return weight


def _collected(
    plan: Plan, record_batches: Iterator[pa.RecordBatch], max_rows: int, max_bytes: int
) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    weight = 0
    for batch in record_batches:
        if len(rows) + batch.num_rows > max_rows:
            raise ViewError(f"the view gives more than {max_rows} rows", code="VHT-VIEW-LIMIT")
        weight += _weight(plan, batch)
        if weight > max_bytes:
            raise ViewError(
                f"the rows of the view take more than {max_bytes >> 20} MiB",
                code="VHT-VIEW-LIMIT",
                hint="fewer columns, a where that narrows, or vht view run, which writes rows as they come",
            )
        rows += batch.to_pylist()
    for column in plan.columns:
        if column.json:
            for row in rows:
                row[column.name] = _parsed(row[column.name])
    return rows


def _parsed(value: Any) -> Any:
    if isinstance(value, list):
        return [orjson.loads(item) for item in value]
    return None if value is None else orjson.loads(value)


def run(
    view: Mapping[str, Any],
    resources: Iterable[Mapping[str, Any]],
    *,
    max_rows: int = MAX_ROWS,
    max_bytes: int = MAX_BYTES,
    time_limit_s: float | None = TIME_LIMIT_S,
) -> list[dict[str, Any]]:
    """The rows of ``view`` over ``resources`` (of any types: those of the view's type count).

    Raises: ViewError for the view (VHT-VIEW-LIMIT also beyond ``max_rows`` or about ``max_bytes`` of memory,
    VHT-VIEW-TIME beyond ``time_limit_s``), InputError VHT-INPUT-FHIR-LINE for a resource that cannot be read as FHIR's:
    an object or a list where there is none, a text that is no number. This is no validation: a value of another JSON
    type passes where it can be read. "12.3" reads as 12.3, "true" as true, and where FHIR has text, whatever JSON
    stands there. Intake refuses these.
    """
    plan = compile_view(view)
    lines = []
    for resource in resources:
        if not isinstance(resource, Mapping) or not isinstance(resource.get("resourceType"), str):
            raise InputError("a resource is an object with a resourceType", code=LINE_FAULT)
        if resource["resourceType"] == plan.resource:
            try:
                lines.append(orjson.dumps(resource))
            except (TypeError, RecursionError) as error:
                raise InputError("a resource is not JSON, or nested too deep", code=LINE_FAULT) from error
    with spooled(lines) as path, locked([path], limit=TimeLimit(time_limit_s)) as connection:
        return run_plan(plan, connection, [path], max_rows=max_rows, max_bytes=max_bytes)


def prove(plan: Plan) -> None:
    """Have the database take the view's statement and run it over a resource without elements.

    Raises: ViewError VHT-VIEW-RANGE for a number that leaves its range whatever the data, VHT-VIEW-QUERY.
    """
    with spooled([orjson.dumps({"resourceType": plan.resource})]) as path, locked([path]) as connection:
        try:
            run_plan(plan, connection, [path])
        except ViewError:
            raise
        except InputError as error:
            raise ViewError("the view does not run over a resource without elements", code="VHT-VIEW-QUERY") from error


def explain(view: Mapping[str, Any], files: Sequence[str] | None = None) -> str:
    """The SQL that runs for ``view``, over ``files`` or a file named after its resource type."""
    plan = compile_view(view)
    return plan.script(files if files is not None else [f"{plan.resource}.ndjson"])
