"""Which codes in the store mean something here: to a port of a component, a feature, or a code map; and which nothing.

A panel's own code is not asked for: its components' are, and they hold the values. Counts are told as elsewhere
(``disclosure_control``): to the nearest ten, and a code of fewer patients than the node's smallest cell is not named at
all, only counted by its system; a local code may be a text about somebody.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import duckdb

from connector.duckdb_lockdown import locked
from connector.fhir.codes import CodeMaps, Coding, covers, features
from connector.fhir.disclosure_control import disclosable_count
from connector.fhir.store import Generation, Store
from connector.quality.unfilled_ports import unfilled_ports
from connector.views.port_codings import CODED, VALUED, named_codings, table_of
from connector.views.store_tables import parts
from vht_federate.components.contract import Component
from vht_federate.errors import CohortError

__all__ = ["CodeCoverage", "code_coverage"]

MEMORY = "1GB"
TYPES = {"observation": "Observation", "condition": "Condition", "medication_request": "MedicationRequest"}
_HELD = """
SELECT {system}, {code}, count(DISTINCT resource), count(DISTINCT subject) FROM {table}
WHERE {code} IS NOT NULL AND {valued} GROUP BY ALL ORDER BY 3 DESC, 1, 2
"""


@dataclass(frozen=True)
class HeldCode:
    """``system`` is None for a code that names none."""

    type: str
    system: str | None
    code: str
    resources: int
    patients: int


@dataclass(frozen=True)
class CodeCoverage:
    """``unknown``: codes that mean nothing here, the most frequent first. ``known``: how many codes of each type a port
    reads, and how many only a feature or a map knows."""

    known: dict[str, dict[str, int]]
    unknown: tuple[HeldCode, ...]
    unfilled: tuple[dict[str, Any], ...]
    maps: dict[str, str]

    def to_dict(self, smallest_cell: int) -> dict[str, Any]:
        named = [code for code in self.unknown if code.patients >= smallest_cell]
        return {
            "smallest_cell": smallest_cell,
            "code_maps": self.maps,
            "types": self._types(),
            "unknown": [
                {
                    **asdict(code),
                    "resources": disclosable_count(code.resources, smallest_cell),
                    "patients": disclosable_count(code.patients, smallest_cell),
                }
                for code in named
            ],
            "rare": self._rare(smallest_cell),
            "unfilled": list(self.unfilled),
        }

    def _types(self) -> list[dict[str, Any]]:
        unknown = dict.fromkeys(TYPES.values(), 0)
        for code in self.unknown:
            unknown[code.type] += 1
        return [{"type": kind, **self.known[kind], "unknown": unknown[kind]} for kind in TYPES.values()]

    def _rare(self, smallest_cell: int) -> list[dict[str, Any]]:
        """Unknown codes of fewer patients than the smallest cell: how many, by type and system."""
        counts: dict[tuple[str, str | None], int] = {}
        for code in self.unknown:
            if code.patients < smallest_cell:
                counts[code.type, code.system] = counts.get((code.type, code.system), 0) + 1
        return [{"type": kind, "system": system, "codes": number} for (kind, system), number in counts.items()]


def code_coverage(store_dir: Path, components: Iterable[Component], maps: CodeMaps) -> CodeCoverage:
    """Of the store as it is. Raises CohortError VHT-COHORT-EMPTY-STORE before the first ingest."""
    generation = Store(store_dir).current()
    if generation is None:
        raise CohortError("this node has ingested no data", code="VHT-COHORT-EMPTY-STORE", hint="vht node ingest")
    chosen = list(components)
    with locked([generation.folder.resolve()], memory=MEMORY) as connection:
        held = {table: _held(connection, generation, table) for table in CODED}
    known: dict[str, dict[str, int]] = {}
    unknown: list[HeldCode] = []
    for table, codes in held.items():
        read, elsewhere = _read_by_ports(table, codes, chosen, maps), 0
        for code in codes:
            coding = (code.system or "", code.code)
            if coding in read:
                continue
            if code.system is not None and _known(coding, maps):
                elsewhere += 1
            else:
                unknown.append(code)
        known[TYPES[table]] = {"read": len(read), "known": elsewhere}
    codings = {
        table: frozenset((code.system, code.code) for code in codes if code.system) for table, codes in held.items()
    }
    unfilled = [
        asdict(port)
        for component in chosen
        for profile in sorted(component.profiles)
        for port in unfilled_ports(component, profile, codings, maps)
    ]
    unknown.sort(key=lambda code: (-code.resources, code.type, code.system or "", code.code))
    return CodeCoverage(known, tuple(unknown), tuple(unfilled), maps.digests)


def _held(connection: duckdb.DuckDBPyConnection, generation: Generation, table: str) -> list[HeldCode]:
    if not generation.parts(table):
        return []
    system, code = CODED[table]
    sql = _HELD.format(system=system, code=code, table=parts(generation, table), valued=VALUED[table])
    return [HeldCode(TYPES[table], *row) for row in connection.execute(sql).fetchall()]


def _read_by_ports(
    table: str, codes: Iterable[HeldCode], components: Iterable[Component], maps: CodeMaps
) -> set[Coding]:
    held = {(code.system, code.code) for code in codes if code.system is not None}
    read: set[Coding] = set()
    for source in {port.source for component in components for port in component.ports}:
        if table_of(source) == table:
            read |= maps.read_for(named_codings(source), held).keys()
    return read


def _known(coding: Coding, maps: CodeMaps) -> bool:
    return maps.know(coding) or any(covers(one, coding) for feature in features().values() for one in feature.codes)
