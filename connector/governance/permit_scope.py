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
beside the permitted ones, in the same concept or panel, are not there. Where the data hold other codes for what a port
asks for, the code maps say so, by the same rule as for a cohort (``connector.views.port_codings``).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import duckdb

from connector.duckdb_lockdown import quoted
from connector.fhir.codes import CodeMaps, Coding, read_code_maps
from connector.fhir.resources import TABLES
from connector.fhir.store import Generation
from connector.governance.installed_components import InstalledComponents
from connector.views.port_codings import PortCodings, among, read_port_codings, table_of
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

    ``codes``: the (system, code) pairs that the ports in scope name. Both say nothing of the data until the scope is
    taken ``over`` a generation of the store. ``sources`` are those of the ports in scope.
    """

    rows: dict[str, str]
    birth_date: bool
    gender: bool
    codes: frozenset[Coding]
    sources: tuple[Source, ...] = ()
    maps: CodeMaps = field(default_factory=CodeMaps)

    def over(self, connection: duckdb.DuckDBPyConnection, generation: Generation) -> "PermitScope":
        """This scope, with the codes of ``generation`` that stand for those that ports name. Only codes are read."""
        codings = read_port_codings(connection, generation, self.sources, self.maps)
        rows = _rows(self.sources, codings) | {kind: self.rows[kind] for kind in ("Patient", "Encounter")}
        return replace(self, rows=rows, codes=frozenset(_codes(self.sources, codings)))

    @property
    def encounters(self) -> bool:
        return self.rows["Encounter"] == "true"

    def withheld(self, resource_type: str) -> list[str]:
        """Elements of a rendered resource that no column of the permit opens."""
        if resource_type != "Patient":
            return [] if self.encounters else ["encounter"]
        always = ["active", "deceasedBoolean", "deceasedDateTime"]
        return always + ["birthDate", "_birthDate"] * (not self.birth_date) + ["gender"] * (not self.gender)


def permit_scope(permit: Permit, installed: InstalledComponents, maps: CodeMaps | None = None) -> PermitScope:
    """What the permit's columns open, by its components that are installed here; ``maps``: by default those that ship.

    Raises ComponentError VHT-COMPONENT-NOT-INSTALLED where none is.
    """
    return _scope_of(permit.columns, installed.allowed_by(permit), maps or read_code_maps())


def _scope_of(columns: Iterable[str], components: Iterable[Component], maps: CodeMaps) -> PermitScope:
    wanted = frozenset(columns)
    sources = tuple(
        dict.fromkeys(port.source for component in components for port in component.ports if port.name in wanted)
    )
    named = PortCodings()
    rows = _rows(sources, named)
    rows["Patient"] = "active"
    rows["Encounter"] = "true" if ENCOUNTERS in wanted else "false"
    types = {source.type for source in sources}
    return PermitScope(rows, "age" in types, "sex" in types, frozenset(_codes(sources, named)), sources, maps)


def _rows(sources: Iterable[Source], codings: PortCodings) -> dict[str, str]:
    conditions: dict[str, list[str]] = {kind: [] for kind in TABLES}
    for source in sources:
        table, kind = table_of(source), _KINDS.get(source.type, "Observation")
        if table is None:
            continue
        about = among(codings.of(source), "", table)
        if source.type in _VALUES:
            about = f"({about} AND {_VALUES[source.type].format(system=quoted(source.system))})"
        conditions[kind].append(about)
    return {
        kind: f"({' OR '.join(dict.fromkeys(clauses))})" if clauses else "false" for kind, clauses in conditions.items()
    }


def _codes(sources: Iterable[Source], codings: PortCodings) -> Iterable[Coding]:
    for source in sources:
        yield from codings.of(source)
        if source.type == "observation-code":
            yield from ((source.system, code) for code in (*source.values, *source.negatives))
