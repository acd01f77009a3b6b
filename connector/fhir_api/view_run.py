"""``$viewdefinition-run`` of SQL on FHIR v2: a view over what a permit shows, as rows.

The view reads NDJSON of its type as the permit sees it, in a database that sees nothing else; rows, bytes and time are
bounded.
"""

import csv
import io
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from connector.fhir.resources import TABLES
from connector.fhir_api.export_request import since_refused
from connector.fhir_api.limits import Limits
from connector.fhir_api.permit_view import PermitView, interrupted_after
from connector.views.sql import compile_view
from connector.views.sql.compilation import Plan
from connector.views.sql.execution import locked, run_plan
from connector.views.sql.limits import TimeLimit
from vht_federate.errors import InputError

__all__ = ["FORMATS", "Asked", "read_parameters", "run_view"]

FORMATS = {"json": "application/json", "ndjson": "application/x-ndjson", "csv": "text/csv; charset=utf-8"}
_SPELLED = {"application/json": "json", "application/x-ndjson": "ndjson", "application/ndjson": "ndjson",
            "text/csv": "csv"}  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """A run that was understood. ``names``: the permit's names of the patients that it is about."""

    plan: Plan
    format: str
    header: bool
    limit: int
    names: frozenset[str] | None


def read_parameters(body: bytes, query: Mapping[str, str], limits: Limits) -> Asked:
    """A Parameters resource (and ``_format`` in the address). Raises InputError VHT-INPUT-VIEW-RUN,
    VHT-INPUT-SINCE; ViewError."""
    view, options, patients = _parts(body)
    options = {"_format": query["_format"]} | options if "_format" in query else options
    if view is None:
        raise _refused("the parameters lack viewResource")
    plan = compile_view(view)
    if plan.resource not in TABLES:
        raise _refused("resources of the view's type are not kept")
    format_ = str(options.get("_format", options.get("format", "json")))
    format_ = _SPELLED.get(format_, format_)
    limit = options.get("_limit", limits.view_rows)
    header = options.get("header", True)
    if format_ not in FORMATS or type(limit) is not int or limit < 0 or type(header) is not bool:
        raise _refused("_format is json, ndjson or csv; _limit a number; header true or false")
    if "_since" in options:
        raise since_refused()
    names = frozenset(reference.removeprefix("Patient/") for reference in patients) if patients else None
    return Asked(plan, format_, header, min(limit, limits.view_rows), names)


def _parts(body: bytes) -> tuple[Any, dict[str, Any], list[str]]:
    view, options, patients = None, {}, []
    try:
        resource = orjson.loads(body)
        if resource["resourceType"] != "Parameters":
            raise _refused("a view is sent in a Parameters resource")
        for parameter in resource.get("parameter", []):
            name = parameter["name"]
            if name == "viewResource":
                view = parameter["resource"]
            elif name in ("patient", "subject"):
                patients.append(str(parameter["valueReference"]["reference"]))
            elif name in ("_format", "format", "header", "_limit", "_since"):
                [options[name]] = [value for key, value in parameter.items() if key.startswith("value")]
            else:
                raise _refused("a parameter is not one that this operation has")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _refused("the parameters are no Parameters resource") from error
    return view, options, patients


def run_view(permit_view: PermitView, asked: Asked, limits: Limits, scratch: Path) -> tuple[bytes, int]:
    """The rows in the asked format, and how many they are.

    Raises: what the view's engine raises, UnavailableError VHT-UNAVAILABLE-DEADLINE.
    """
    scratch.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        path = Path(folder).resolve() / "resources.ndjson"
        _spool(permit_view, asked, limits, path)
        with locked([str(path)], limit=TimeLimit(limits.query_s)) as connection:
            bounds = {"max_rows": limits.view_rows, "max_bytes": limits.view_answer}
            rows = run_plan(asked.plan, connection, [str(path)], **bounds)[: asked.limit]
    return _written(rows, asked), len(rows)


def _spool(permit_view: PermitView, view_request: Asked, limits: Limits, path: Path) -> None:
    size = 0
    with (
        permit_view.open() as connection,
        interrupted_after(connection, limits.query_s),
        path.open("wb") as file,
    ):
        for resource in permit_view.everything(connection, view_request.plan.resource, names=view_request.names):
            size += file.write(orjson.dumps(resource) + b"\n")
            if size > limits.view_bytes:
                raise InputError("the view reads more than one request may", code="VHT-INPUT-SIZE")


def _written(rows: list[dict[str, Any]], view_request: Asked) -> bytes:
    if view_request.format == "json":
        return orjson.dumps(rows)
    if view_request.format == "ndjson":
        return b"".join(orjson.dumps(row) + b"\n" for row in rows)
    sheet = io.StringIO()
    writer = csv.writer(sheet, lineterminator="\r\n")  # RFC 4180
    if view_request.header:
        writer.writerow(column.name for column in view_request.plan.columns)
    for row in rows:
        writer.writerow(_cells(row))
    return sheet.getvalue().encode()


def _cells(row: dict[str, Any]) -> Iterator[Any]:
    for value in row.values():
        if isinstance(value, bool):
            yield "true" if value else "false"
        else:
            yield orjson.dumps(value).decode() if isinstance(value, (list, dict)) else value


def _refused(message: str) -> InputError:
    return InputError(message, code="VHT-INPUT-VIEW-RUN")
