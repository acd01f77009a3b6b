"""``vht view check | run | explain``: SQL on FHIR v2 views over NDJSON and Bundles, without a running node."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from connector.fhir.quarantine_reasons import reason
from connector.fhir.source_folder import Ignored
from connector.views.sql.compilation import Plan, compile_view
from connector.views.sql.definition import MAX_BYTES
from connector.views.sql.execution import arrow_schema, prove
from connector.views.sql.limits import TIME_LIMIT_S
from connector.views.sql.ndjson_sources import ReadingReport, execute, find_files
from connector.views.sql.shipped import shipped
from connector.views.sql.writers import write_rows
from vht_federate import output
from vht_federate.errors import ViewError

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Check, run and explain SQL on FHIR v2 views.")

SHOWN = 20
ViewFile = Annotated[Path, typer.Argument(metavar="FILE", help="A ViewDefinition as JSON, or a shipped view's name.")]
Data = Annotated[Path, typer.Option("--data", exists=True, help="A file of NDJSON or a Bundle, or a folder of them.")]


def read_view_file(path: Path) -> Any:
    """The view in ``path``, or the shipped one of that name.

    Raises: ViewError VHT-VIEW-LIMIT or -SHAPE before anything big is parsed, VHT-VIEW-UNKNOWN.
    """
    if not path.is_file():
        return shipped(str(path))
    if path.stat().st_size > MAX_BYTES:
        raise ViewError(f"{path.name}: a view has at most {MAX_BYTES} bytes", code="VHT-VIEW-LIMIT")
    try:
        return orjson.loads(path.read_bytes())
    except ValueError as error:
        raise ViewError(f"{path.name} is not JSON", code="VHT-VIEW-SHAPE") from error


def _columns(plan: Plan) -> list[dict[str, Any]]:
    return [{"name": column.name, "type": column.type, "collection": column.collection} for column in plan.columns]


@app.command()
@output.command("view check")
def check(view: ViewFile) -> None:
    """Check a view against SQL on FHIR v2 and FHIR R4, prove that it runs, and list its columns."""
    plan = compile_view(read_view_file(view))
    prove(plan)
    columns = _columns(plan)
    rows = [[column["name"], column["type"], "yes" if column["collection"] else ""] for column in columns]
    table = output.table(f"{view.name}: valid, over {plan.resource}", ["column", "type", "collection"], rows)
    output.emit("view check", {"resource": plan.resource, "columns": columns}, table)


@app.command()
@output.command("view explain")
def explain(
    view: ViewFile,
    data: Annotated[Path | None, typer.Option("--data", exists=True, help="The NDJSON that it would read.")] = None,
) -> None:
    """Show the SQL that runs for a view."""
    plan = compile_view(read_view_file(view))
    files = [f"{plan.resource}.ndjson"]
    if data:
        files = [str(path.resolve()) for path in find_files(data, plan.resource).files]
    sql = plan.script(files)
    if output.json_mode():
        output.emit("view explain", {"resource": plan.resource, "sql": sql})
    else:
        print(sql)


@app.command()
@output.command("view run")
def run(
    view: ViewFile,
    data: Data,
    out: Annotated[Path | None, typer.Option("--out", help="rows.csv, rows.parquet or rows.ndjson")] = None,
    skip_bad_lines: Annotated[bool, typer.Option(help="Leave out lines that do not fit, and count them.")] = False,
    threads: Annotated[int, typer.Option(min=1, max=64, help="Of the database.")] = 1,
    time_limit: Annotated[
        float, typer.Option(min=0.001, help="Seconds; a view that takes longer is stopped.")
    ] = TIME_LIMIT_S,
) -> None:
    """Run a view over NDJSON and Bundles. A line that cannot be read as FHIR's stops it, unless --skip-bad-lines. This
    is no validation: a value of another JSON type passes where it can be read (vht node ingest refuses it)."""
    plan = compile_view(read_view_file(view))
    found = find_files(data, plan.resource)
    schema = arrow_schema(plan)
    head: list[dict[str, Any]] = []

    def sink(batches: Any) -> int:
        if out is not None:
            return write_rows(out, schema, batches)
        head.clear()
        rows = 0
        for batch in batches:
            head.extend(batch.slice(0, max(0, SHOWN - len(head))).to_pylist())
            rows += batch.num_rows
        return rows

    report = execute(plan, found.files, sink, skip_bad_lines=skip_bad_lines, threads=threads, time_limit_s=time_limit)
    _report(plan, report, found.ignored, head, out)


def _report(
    plan: Plan, report: ReadingReport, ignored: Sequence[Ignored], head: list[dict[str, Any]], out: Path | None
) -> None:
    body = asdict(report) | {"resource": plan.resource, "columns": _columns(plan), "out": str(out) if out else None}
    body["ignored"] = [asdict(entry) for entry in ignored]
    parts: list[Any] = []
    if out is None:
        body["head"] = head
        names = [column.name for column in plan.columns]
        title = f"first {len(head)} of {report.rows} rows"
        parts.append(output.table(title, names, [[row[name] for name in names] for row in head]))
    else:
        parts.append(f"{report.rows} rows in {out}")
    parts.append(
        f"{report.lines} lines: {report.resources} {plan.resource}, {report.other} other, {len(report.faults)} left out"
    )
    if report.faults:
        listed = [[line.file, line.line, line.reason] for line in report.faults[:SHOWN]]
        parts.append(output.table("lines left out", ["file", "line", "reason"], listed))
    if ignored:
        listed = [[entry.name, entry.reason, reason(entry.reason).what] for entry in ignored[:SHOWN]]
        more = f", the first {SHOWN}" if len(ignored) > SHOWN else ""
        parts.append(output.table(f"{len(ignored)} not read{more}", ["name", "reason", "what"], listed))
    output.emit("view run", body, *parts)
