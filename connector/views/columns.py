"""How each kind of source becomes one column: the last value before the record's landmark, or missing."""

# ruff: noqa: S608 - SQL is put together from our own paths, quoted, and from constants; values are parameters.

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from connector.fhir.store import Generation
from connector.views.people import FINAL, parts
from vht_federate.components.contract import Port
from vht_federate.domain.units import Affine, accepted_units
from vht_federate.errors import ViewError

__all__ = ["Column", "read_column"]

Floats = npt.NDArray[np.float32]

# Of several values at one instant, the resource's key decides: arbitrary, but the same every time.
_LAST = """
SELECT record, {columns} FROM (
    SELECT r.record, {columns}, row_number() OVER (
        PARTITION BY r.record ORDER BY o.effective DESC, o.resource DESC, o.part DESC, o.value_code) AS place
    FROM record r JOIN {table} o ON o.subject = r.subject AND o.effective < r.landmark::TIMESTAMPTZ
    WHERE o.code_system = $system AND list_contains($codes::VARCHAR[], o.code)
        AND o.status IN {final} AND {usable})
WHERE place = 1
"""
_EVER = """
SELECT DISTINCT r.record FROM record r JOIN {table} o ON o.subject = r.subject
    AND o.{moment} < r.landmark::TIMESTAMPTZ
WHERE o.system = $system AND list_contains($codes::VARCHAR[], o.code) AND {usable}
"""
_REAL_CONDITION = "coalesce(o.verification, 'confirmed') NOT IN ('refuted', 'entered-in-error')"
_REAL_REQUEST = """o.status NOT IN ('entered-in-error', 'cancelled', 'draft')
    AND o.intent NOT IN ('proposal', 'plan', 'option') AND NOT o.prohibited"""


@dataclass(frozen=True)
class Column:
    """``values`` [records] in the port's unit, NaN where missing. ``unusable``: values in a unit we cannot turn."""

    values: Floats
    units: Mapping[str, Affine]
    unusable: int = 0


@dataclass(frozen=True)
class _Reader:
    connection: duckdb.DuckDBPyConnection
    generation: Generation
    port: Port
    records: int

    def find(self, sql: str, **more: Any) -> list[npt.NDArray[Any]]:
        """The answer's columns. Cells that are NULL come masked; none of our queries yields them."""
        source = self.port.source
        parameters = {"system": source.code_system, "codes": list(source.codes), **more}
        return list(self.connection.execute(sql, parameters).fetchnumpy().values())

    def last(self, columns: str, usable: str, **more: Any) -> list[npt.NDArray[Any]]:
        table = parts(self.generation, "observation")
        return self.find(_LAST.format(columns=columns, table=table, usable=usable, final=FINAL), **more)

    def empty(self, value: float = np.nan) -> Floats:
        return np.full(self.records, value, dtype=np.float32)

    def age(self) -> Column:
        record, age = self.connection.execute("SELECT record, age FROM record ORDER BY record").fetchnumpy().values()
        assert len(record) == self.records
        return Column(np.ma.filled(age.astype(np.float32), np.nan), {})

    def sex(self) -> Column:
        values = self.empty()
        sql = "SELECT record, (sex = ?)::FLOAT AS truth FROM record WHERE sex IN ('male', 'female')"
        record, truth = self.connection.execute(sql, [self.port.source.equals]).fetchnumpy().values()
        values[record] = truth
        return Column(values, {})

    def quantity(self) -> Column:
        port = self.port
        units = accepted_units(port.unit or "1", loinc=port.loinc, molar_mass=port.molar_mass)
        usable = "o.number IS NOT NULL AND list_contains($units::VARCHAR[], o.unit)"
        record, number, unit = self.last("number, unit", usable, units=list(units))
        values = self.empty()
        for name, to_port in units.items():
            chosen = unit == name
            values[record[chosen]] = to_port.scale * number[chosen] + to_port.offset
        [[unusable]] = self.find(
            f"""SELECT count(*) FROM {parts(self.generation, "observation")}
            WHERE code_system = $system AND list_contains($codes::VARCHAR[], code)
                AND number IS NOT NULL AND NOT list_contains($units::VARCHAR[], unit)""",
            units=list(units),
        )
        return Column(values, units, int(unusable))

    def truth(self) -> Column:
        values = self.empty()
        record, truth = self.last("truth", "o.truth IS NOT NULL")
        values[record] = truth.astype(np.float32)
        return Column(values, {})

    def coded(self) -> Column:
        port, values = self.port, self.empty()
        if port.kind == "category":
            meaning = {spelled: float(index) for index, spelled in enumerate(port.categories)}
        else:
            meaning = dict.fromkeys(port.source.negatives, 0.0) | dict.fromkeys(port.source.values, 1.0)
        usable = "o.value_system = $values AND o.value_code IS NOT NULL"
        record, spelled = self.last("value_code", usable, values=port.source.system)
        values[record] = [meaning.get(code, np.nan) for code in spelled]
        return Column(values, {})

    def condition(self) -> Column:
        return self._ever("condition", "onset", _REAL_CONDITION)

    def medication(self) -> Column:
        return self._ever("medication_request", "authored", _REAL_REQUEST)

    def _ever(self, table: str, moment: str, usable: str) -> Column:
        sql = _EVER.format(table=parts(self.generation, table), moment=moment, usable=usable)
        [record] = self.find(sql, system=self.port.source.system)
        values = self.empty(0.0)
        values[record] = 1.0
        return Column(values, {})


_KINDS: dict[str, Callable[[_Reader], Column]] = {
    "age": _Reader.age,
    "sex": _Reader.sex,
    "observation": _Reader.quantity,
    "observation-boolean": _Reader.truth,
    "observation-code": _Reader.coded,
    "condition": _Reader.condition,
    "medication": _Reader.medication,
}


def read_column(connection: duckdb.DuckDBPyConnection, generation: Generation, port: Port, records: int) -> Column:
    """The column of ``port`` over table ``record``. Raises ViewError for a source of an unknown type."""
    kind = _KINDS.get(port.source.type)
    if kind is None:
        raise ViewError(f"port {port.name} has a source that this node cannot read", code="VHT-VIEW-SOURCE")
    return kind(_Reader(connection, generation, port, records))
