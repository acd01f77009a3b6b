"""Inclusion criteria: a view that comes with the component, whose rows name the patients that a profile is about.

The view is held to what every view is held to (``connector.views.sql``): it is compiled, and reads the stored,
minimised resources of patients who did not opt out, and nothing else. Its column ``patient`` is a patient's key, by
``getResourceKey()`` of a Patient or ``getReferenceKey(Patient)``; other columns are for people who read it.
"""

# ruff: noqa: S608 - SQL is put together from a compiled view and constants.

import re
from collections.abc import Iterator, Mapping
from typing import Any

import duckdb

from connector.fhir.rendering import relation
from connector.fhir.resources import TABLES
from connector.fhir.store import Generation
from connector.views.sql import Plan, compile_view
from connector.views.sql.execution import query_error
from connector.views.sql.limits import TIME_LIMIT_S, TimeLimit
from vht_federate.errors import ViewError

__all__ = ["compile_inclusion", "make_included"]

COLUMN = "patient"
_REFERENCE = re.compile(r"getReferenceKey\(\s*Patient\s*\)$")


def compile_inclusion(view: Mapping[str, Any]) -> Plan:
    """The view, compiled. Raises ViewError as ``compile_view`` does, VHT-VIEW-PATIENT where its rows name no patient,
    VHT-VIEW-RESOURCE for resources that no node keeps.
    """
    plan = compile_view(view)
    if plan.resource not in TABLES:
        raise ViewError(
            f"a node keeps no resources of type {plan.resource}",
            code="VHT-VIEW-RESOURCE",
            hint=f"it keeps {', '.join(TABLES)}",
        )
    own = any(column.name == COLUMN and not column.collection for column in plan.columns)
    paths = list(_paths_of(view.get("select")))
    if not own or not all(_names_a_patient(path, plan.resource) for path in paths):
        raise ViewError(
            f"a view of inclusion criteria has a column '{COLUMN}' that is a patient's key",
            code="VHT-VIEW-PATIENT",
            hint="getResourceKey() of a Patient, or subject.getReferenceKey(Patient)",
        )
    return plan


def make_included(
    connection: duckdb.DuckDBPyConnection, generation: Generation, plan: Plan, *, time_limit_s: float = TIME_LIMIT_S
) -> None:
    """Create table ``included`` (subject): those of table ``person`` whom a row of the view names.

    Raises ViewError or InputError where the view does not run to its end in time and memory; neither quotes a value.
    """
    over = plan.query_over(relation(generation, plan.resource, rows="subject IN (SELECT subject FROM person)"))
    try:
        for macro in plan.macros:
            connection.execute(macro)
        with TimeLimit(time_limit_s).on(connection):
            connection.execute(f"CREATE TEMP TABLE included AS SELECT DISTINCT {COLUMN} AS subject FROM ({over})")
    except duckdb.Error as error:
        raise query_error(error) from None


def _paths_of(selects: Any) -> Iterator[str]:
    """The path of every column named ``patient``, in any branch."""
    for select in selects if isinstance(selects, list) else ():
        yield from (str(column["path"]).strip() for column in select.get("column", ()) if column["name"] == COLUMN)
        for inner in ("select", "unionAll"):
            yield from _paths_of(select.get(inner))


def _names_a_patient(path: str, resource: str) -> bool:
    if path == "getResourceKey()":
        return resource == "Patient"
    return _REFERENCE.search(path) is not None
