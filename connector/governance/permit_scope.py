"""What a permit's columns open of the store: a condition on the rows of each type, and elements of Patient.

A column is the name of a port of a component that the permit allows and this node has installed; the port's source
says which codes it reads:

    age, sex                   Patient.birthDate, Patient.gender
    observation                numbers of its codes
    observation-code           values coded in its system, of its codes
    observation-boolean        truths of its codes
    condition, medication      its codes
    fhir:Encounter             (no port: a permit names it so) class, type, reason and period of encounters

Everybody who is active and did not opt out is there as a Patient, with an id alone where no column says more. Codes
beside the permitted ones, in the same concept or panel, are not there.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from connector.duckdb_lockdown import quoted
from connector.fhir.resources import TABLES
from connector.governance.installed_components import InstalledComponents
from vht_federate.components.contract import Component, Source
from vht_federate.domain.permit import Permit

__all__ = ["ENCOUNTERS", "PermitScope", "permit_scope"]

ENCOUNTERS = "fhir:Encounter"
_VALUES = {
    "observation": "number IS NOT NULL",
    "observation-code": "value_system = {system}",
    "observation-boolean": "truth IS NOT NULL",
}
_KINDS = {"condition": "Condition", "medication": "MedicationRequest"}


@dataclass(frozen=True)
class PermitScope:
    """``rows``: for every stored type the condition, in SQL without parameters, on what may be read.

    ``codes``: the (system, code) pairs that the ports in scope name.
    """

    rows: dict[str, str]
    birth_date: bool
    gender: bool
    codes: frozenset[tuple[str, str]]

    @property
    def encounters(self) -> bool:
        return self.rows["Encounter"] == "true"

    def withheld(self, resource_type: str) -> list[str]:
        """Elements of a rendered resource that no column of the permit opens."""
        if resource_type != "Patient":
            return [] if self.encounters else ["encounter"]
        always = ["active", "deceasedBoolean", "deceasedDateTime"]
        return always + ["birthDate", "_birthDate"] * (not self.birth_date) + ["gender"] * (not self.gender)


def permit_scope(permit: Permit, installed: InstalledComponents) -> PermitScope:
    """What the permit's columns open, by its components that are installed here.

    Raises ComponentError VHT-COMPONENT-NOT-INSTALLED where none is.
    """
    return _scope_of(permit.columns, installed.allowed_by(permit))


def _scope_of(columns: Iterable[str], components: Iterable[Component]) -> PermitScope:
    wanted = frozenset(columns)
    sources = [port.source for component in components for port in component.ports if port.name in wanted]
    conditions: dict[str, list[str]] = {kind: [] for kind in TABLES}
    for source in sources:
        if source.type in _VALUES:
            conditions["Observation"].append(_observed(source))
        elif source.type in _KINDS:
            conditions[_KINDS[source.type]].append(f"(system = {quoted(source.system)} AND {_among(source)})")
    rows = {
        kind: f"({' OR '.join(dict.fromkeys(clauses))})" if clauses else "false" for kind, clauses in conditions.items()
    }
    rows["Patient"] = "active"
    rows["Encounter"] = "true" if ENCOUNTERS in wanted else "false"
    types = {source.type for source in sources}
    return PermitScope(rows, "age" in types, "sex" in types, frozenset(_codes(sources)))


def _observed(source: Source) -> str:
    value = _VALUES[source.type].format(system=quoted(source.system))
    return f"(code_system = {quoted(source.code_system)} AND {_among(source)} AND {value})"


def _among(source: Source) -> str:
    return f"code IN ({', '.join(map(quoted, source.codes))})" if source.codes else "false"


def _codes(sources: Iterable[Source]) -> Iterable[tuple[str, str]]:
    for source in sources:
        system = source.code_system if source.type in _VALUES else source.system
        yield from ((system, code) for code in source.codes)
        if source.type == "observation-code":
            yield from ((source.system, code) for code in (*source.values, *source.negatives))
