"""Cohort definitions of feasibility questions: views over what a permit's columns open, of one patient in each row.

What one patient's data do to a view must stay that patient's. A cell that cannot be computed is empty. And the work
that one resource can cause has a bound, so that none makes the view late: a definition is refused, before anything is
read or spent, that multiplies rows (a walk, branches, a second iteration), that puts text together, or whose SQL is
long; and a resource of more than ``MOST_BYTES`` is not read. What is left is a patient's number of resources: each adds
its bounded part.
"""

# ruff: noqa: S608 - SQL is put together from our own conditions and constants; values are parameters.

from typing import Any

from connector.fhir.codes import CodeMaps
from connector.fhir.rendering import relation
from connector.fhir.resources import TABLES
from connector.fhir.store import Generation
from connector.governance.installed_components import InstalledComponents
from connector.governance.permit_scope import PermitScope, permit_scope
from connector.views.sql.compilation import Plan, compile_view
from connector.views.store_tables import stored
from vht_federate.domain.permit import Permit
from vht_federate.errors import InputError, PermitError, ViewError

__all__ = ["compile_definition", "count_query", "opened"]

MOST_BYTES = 64 * 1024  # of one resource as JSON; a panel of a hundred components has less
MOST_SQL = 32_000  # of a plan's weight: a few hundred codes, or a dozen comparisons of dates
ITERATING = {"forEach", "forEachOrNull", "repeat"}
MULTIPLYING = {"repeat", "unionAll"}
OWN_PATIENT = {"Patient": {"getResourceKey()"}}
OF_SUBJECT = {"subject.getReferenceKey(Patient)", "subject.getReferenceKey()"}
_COUNT = """
SELECT count(DISTINCT v.patient) FROM ({rows}) v
JOIN {patient} p ON p.subject = v.patient
WHERE p.active AND NOT list_contains($excluded::VARCHAR[], p.subject)
"""


def compile_definition(view: dict[str, Any]) -> Plan:
    """Raises ViewError: VHT-VIEW-PATIENT where the view does not say whose its rows are, VHT-VIEW-LIMIT where one
    resource could cause work without bound: a repeat, a unionAll, a second forEach, text put together, long SQL."""
    plan = compile_view(view, tolerant=True)
    paths = _paths(view.get("select"), "patient")
    allowed = OWN_PATIENT.get(plan.resource, OF_SUBJECT)
    if len(paths) != 1 or paths[0].replace(" ", "") not in allowed:
        raise ViewError(
            "a cohort definition has one column 'patient', which is the resource's own patient",
            code="VHT-VIEW-PATIENT",
            hint=f"its path is {' or '.join(sorted(allowed))}, outside of forEach",
        )
    multiplying = _multiplying(view.get("select"))
    if MULTIPLYING & set(multiplying) or len(multiplying) > 1:
        raise ViewError(
            "a cohort definition has one forEach at most, no repeat and no unionAll",
            code="VHT-VIEW-LIMIT",
            hint="say who belongs to the cohort in where",
        )
    if plan.weight() > MOST_SQL:
        raise ViewError(
            "the cohort definition unfolds to too much SQL",
            code="VHT-VIEW-LIMIT",
            hint="fewer codes, fewer comparisons of dates, or several questions",
        )
    return plan


def opened(permit: Permit, installed: InstalledComponents, resource_type: str, maps: CodeMaps) -> PermitScope:
    """What the permit's columns open, by its components that are installed here and by ``maps``; no data are read.

    Raises ComponentError VHT-COMPONENT-NOT-INSTALLED where none is, PermitError VHT-PERMIT-COLUMN where no column
    opens anything of ``resource_type``, InputError VHT-INPUT-FHIR-TYPE for a type that is not kept.
    """
    if resource_type not in TABLES:
        raise InputError("resources of this type are not kept", code="VHT-INPUT-FHIR-TYPE")
    scope = permit_scope(permit, installed, maps)
    if scope.rows[resource_type] == "false":
        raise PermitError(f"no column of the permit opens anything of {resource_type}", code="VHT-PERMIT-COLUMN")
    return scope


def count_query(plan: Plan, generation: Generation, scope: PermitScope) -> str:
    """SQL of how many patients meet the definition, by resources of ``MOST_BYTES`` at most; parameter ``excluded``:
    persons who are not counted."""
    resources = relation(generation, plan.resource, rows=scope.rows[plan.resource])
    if withheld := scope.withheld(plan.resource):
        removed = ",".join(f'"{name}":null' for name in withheld)
        resources = f"SELECT subject, json_merge_patch(resource, '{{{removed}}}') AS resource FROM ({resources})"
    resources = f"SELECT subject, resource FROM ({resources}) WHERE strlen(CAST(resource AS VARCHAR)) <= {MOST_BYTES}"
    return _COUNT.format(rows=plan.query_over(resources), patient=stored(generation)("patient"))


def _paths(selects: Any, name: str) -> list[str]:
    """Of the columns ``name``; of those that stand in an iteration, that they do."""
    paths: list[str] = []
    for select in selects if isinstance(selects, list) else ():
        own_paths = [column["path"] for column in select.get("column", ()) if column.get("name") == name]
        own_paths += _paths(select.get("select"), name)
        paths += ["(in an iteration)"] * len(own_paths) if ITERATING & select.keys() else own_paths
    return paths


def _multiplying(selects: Any) -> list[str]:
    """What makes several rows of one, in all selects and their branches."""
    keywords: list[str] = []
    for select in selects if isinstance(selects, list) else ():
        keywords += sorted((ITERATING | MULTIPLYING) & select.keys())
        keywords += _multiplying(select.get("select")) + _multiplying(select.get("unionAll"))
    return keywords
