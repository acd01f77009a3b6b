"""Ports that can never be filled at this node: the store holds no code that they read, by any map.

A medication that is coded in a system that no map reads is silently "no" for everybody: that is said after an intake,
in a survey, and before an operator approves. It is said to the node's operators alone: that nobody has something is a
fact about patients.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb

from connector.duckdb_lockdown import locked
from connector.fhir.codes import CodeMaps, Coding, read_code_maps
from connector.fhir.store import Generation, Store
from connector.views.port_codings import CODED, VALUED, held_codings, named_codings, table_of
from vht_federate.components.contract import Component, Port
from vht_federate.components.registry import find_digest, installed
from vht_federate.errors import ComponentError

__all__ = ["UnfilledPort", "UnfilledPorts", "held_by_table", "unfilled_ports"]

_ABSENT = {
    "outcome": "nobody has the outcome",
    "no": "everybody counts as no",
    "missing": "it is missing of everybody",
}


@dataclass(frozen=True)
class UnfilledPort:
    """``asks``: the system of the port's codes; ``holds``: those of the data that it could read; ``then``: what a study
    with the profile would see."""

    component: str
    profile: str
    port: str
    title: str
    asks: str
    holds: tuple[str, ...]
    then: str


def held_by_table(connection: duckdb.DuckDBPyConnection, generation: Generation) -> dict[str, frozenset[Coding]]:
    """What a port could be filled with: codes under which the store holds a value."""
    return {table: held_codings(connection, generation, table, VALUED[table]) for table in CODED}


def unfilled_ports(
    component: Component, profile: str, held: Mapping[str, frozenset[Coding]], maps: CodeMaps
) -> tuple[UnfilledPort, ...]:
    """Those of ``profile`` for which nothing of ``held`` is read, in the profile's order."""
    ports = [component.port(name) for name in component.columns(profile)]
    return tuple(_described(component, profile, port, held) for port in ports if not _filled(port, held, maps))


def _filled(port: Port, held: Mapping[str, frozenset[Coding]], maps: CodeMaps) -> bool:
    table = table_of(port.source)
    if table is None:
        return True
    named = named_codings(port.source)
    return not held[table].isdisjoint(named) or bool(maps.may_widen(named) and maps.read_for(named, held[table]))


def _described(component: Component, profile: str, port: Port, held: Mapping[str, frozenset[Coding]]) -> UnfilledPort:
    table = table_of(port.source) or ""
    systems = sorted({system for system, _ in held[table]})
    asks = ", ".join(sorted({system for system, _ in named_codings(port.source)}))
    then = "outcome" if port.direction == "outcome" else "missing" if table == "observation" else "no"
    return UnfilledPort(component.name, profile, port.name, port.title, asks, tuple(systems), _ABSENT[then])


@dataclass(frozen=True)
class UnfilledPorts:
    """At one node: ``store`` is the folder of its FHIR store, ``code_maps`` of its own maps, ``paths`` where components
    are installed besides those that ship."""

    store: Path
    code_maps: Path
    paths: tuple[Path, ...]

    def of_installed(self) -> list[dict[str, Any]]:
        """Of every profile of every installed component. Raises InputError VHT-INPUT-CODE-MAP, VHT-INPUT-COMPONENT."""
        chosen = [entry.component for entry in installed(self.paths).values()]
        return self._of([(component, name) for component in chosen for name in sorted(component.profiles)])

    def of_study(self, digest: str, profile: str, columns: Sequence[str]) -> list[dict[str, Any]]:
        """Of the columns that a study reads with the component of this digest; none where it is not installed."""
        try:
            component = find_digest(digest, self.paths).component
        except ComponentError:
            return []
        return [port for port in self._of([(component, profile)]) if port["port"] in columns]

    def _of(self, profiles: Iterable[tuple[Component, str]]) -> list[dict[str, Any]]:
        generation, maps = Store(self.store).current(), read_code_maps(self.code_maps)
        if generation is None:
            return []
        with locked([generation.folder.resolve()]) as connection:
            held = held_by_table(connection, generation)
        return [
            asdict(port) for component, profile in profiles for port in unfilled_ports(component, profile, held, maps)
        ]
