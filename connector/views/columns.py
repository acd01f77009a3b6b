"""How each kind of source becomes one column: the values before the record's day that the profile's layout asks for.

A value whose date is a year or a month alone is as late as it may be (``last_possible``): it counts, and is sorted, at
the last moment that its date may mean.
"""

# ruff: noqa: S608 - SQL is put together from our own paths, quoted, and from constants; values are parameters.

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import duckdb
import numpy as np
import numpy.typing as npt

from connector.fhir.codes import Measure
from connector.views.eligible_patients import FINAL
from connector.views.port_codings import PortCodings, among
from connector.views.store_tables import Relations, last_possible
from vht_federate.components.contract import Port, Profile
from vht_federate.domain.units import Affine
from vht_federate.errors import ViewError

__all__ = ["REAL_CONDITION", "REAL_REQUEST", "Cells", "Column", "count_partial_dates", "read_column"]

Array = npt.NDArray[Any]

# One value per Observation or component, however many codings it has. Of several at one instant, the resource's key
# decides: arbitrary, but the same every time. `before` is in microseconds.
_HISTORY = """
WITH measured AS (
    SELECT r.record, o.dated, o.resource, o.part, {payload},
        date_diff('microsecond', o.dated, any_value(r.landmark)::TIMESTAMPTZ) AS before
    FROM record r JOIN (SELECT *, {dated} AS dated FROM {table}) o
        ON o.subject = r.subject AND o.dated < r.landmark::TIMESTAMPTZ
    WHERE {asked} AND o.status IN {final} AND {usable}
    GROUP BY r.record, o.dated, o.resource, o.part
), placed AS (SELECT *, {back} AS back FROM measured)
SELECT record, back, before, {names} FROM placed WHERE back < $steps
{chosen} ORDER BY record, back, dated, resource, part
"""
_LATEST = "ORDER BY dated DESC, resource DESC, part DESC"
_BY_PLACE = f"row_number() OVER (PARTITION BY record {_LATEST}) - 1"
_BY_WINDOW = "(before - 1) // $window"  # a window holds its first instant and not its end, which is the next one's
_LAST_IN_WINDOW = f"QUALIFY row_number() OVER (PARTITION BY record, back {_LATEST}) = 1"
_EVER = """
SELECT r.record, max(date_diff('microsecond', o.dated, r.landmark::TIMESTAMPTZ)) AS before
FROM record r JOIN (SELECT *, {dated} AS dated FROM {table}) o
    ON o.subject = r.subject AND o.dated < r.landmark::TIMESTAMPTZ
WHERE {asked} AND {usable}
GROUP BY r.record
"""
_PARTIAL = """
SELECT count(DISTINCT o.resource) FROM {table} o SEMI JOIN person USING (subject)
WHERE {asked} AND o.{moment}_until IS NOT NULL
"""
# Where the date of a source stands, by table.
_DATED = {"condition": ("condition", "onset"), "medication": ("medication_request", "authored")}
REAL_CONDITION = "coalesce(o.verification, 'confirmed') NOT IN ('refuted', 'entered-in-error')"
REAL_REQUEST = """o.status NOT IN ('entered-in-error', 'cancelled', 'draft')
    AND o.intent NOT IN ('proposal', 'plan', 'option') AND NOT o.prohibited"""
_DAY = 86_400_000_000  # microseconds


@dataclass(frozen=True)
class Cells:
    """Single values of a column. ``back``: steps before the last; ``days`` before the record's day; NaN: unknown."""

    record: Array
    back: Array
    days: Array
    value: Array


@dataclass(frozen=True)
class Column:
    """``cells`` in the port's unit. ``units``: those in the store that become it; ``unusable``: values in others;
    ``reread``: values whose unit the code map takes for another one."""

    cells: Cells
    units: Mapping[str, Affine] = field(default_factory=dict)
    unusable: int = 0
    reread: int = 0


@dataclass(frozen=True)
class _Reader:
    connection: duckdb.DuckDBPyConnection
    relations: Relations
    port: Port
    profile: Profile
    records: int
    codings: PortCodings

    def find(self, sql: str, **more: Any) -> list[Array]:
        """The answer's columns. Cells that are NULL come masked; none of our queries yields them."""
        return list(self.connection.execute(sql, more).fetchnumpy().values())

    def asked(self, table: str, alias: str = "o") -> str:
        """SQL: a row of ``table`` is about what the port reads."""
        return among(self.codings.of(self.port.source), alias, table)

    def history(self, names: tuple[str, ...], usable: str, **more: Any) -> list[Array]:
        """Record, steps back, days before, and the named columns of each value that the layout asks for."""
        windows = self.profile.layout == "sequence"
        chosen = _LAST_IN_WINDOW if windows and self.port.aggregate == "last" else ""
        sql = _HISTORY.format(
            payload=", ".join(f"min(o.{name}) AS {name}" for name in names),
            names=", ".join(names),
            table=self.relations("observation"),
            asked=self.asked("observation"),
            final=FINAL,
            usable=usable,
            dated=last_possible("effective"),
            back=_BY_WINDOW if windows else _BY_PLACE,
            chosen=chosen,
        )
        if windows:
            more["window"] = self.profile.window_days * _DAY
        record, back, before, *payload = self.find(sql, steps=self.profile.steps, **more)
        return [record, back, before / _DAY, *payload]

    def state(self, value_at: Callable[[Array, Array], Array]) -> Column:
        """A column that has a value at any time: ``value_at(record, days)``, at the end of each window, or once."""
        steps = self.profile.steps if self.profile.layout == "sequence" else 1
        record, back = np.repeat(np.arange(self.records), steps), np.tile(np.arange(steps), self.records)
        days = (back * self.profile.window_days).astype(np.float64)
        return Column(Cells(record, back, days, value_at(record, days)))

    def age(self) -> Column:
        record, age = self.connection.execute("SELECT record, age FROM record ORDER BY record").fetchnumpy().values()
        assert len(record) == self.records
        values = np.ma.filled(age.astype(np.float64), np.nan)
        return self.state(lambda record, _: values[record])

    def sex(self) -> Column:
        values = np.full(self.records, np.nan)
        sql = "SELECT record, (sex = ?)::FLOAT AS truth FROM record WHERE sex IN ('male', 'female')"
        record, truth = self.connection.execute(sql, [self.port.source.equals]).fetchnumpy().values()
        values[record] = truth
        return self.state(lambda record, _: values[record])

    def quantity(self) -> Column:
        counts = self._unit_counts()
        turns = Measure.of_port(self.port).turns(counts)
        usable = "o.number IS NOT NULL AND list_contains($units::VARCHAR[], o.unit)"
        record, back, days, number, unit = self.history(("number", "unit"), usable, units=list(turns))
        value = np.full(len(record), np.nan)
        for name, turn in turns.items():
            chosen = unit == name
            value[chosen] = turn.way.scale * number[chosen] + turn.way.offset
        cells = Cells(record, back, days, value)
        averaged = self.profile.layout == "sequence" and self.port.aggregate == "mean"
        return Column(
            _means(cells) if averaged else cells,
            {name: turn.way for name, turn in turns.items()},
            unusable=sum(count for name, count in counts.items() if name not in turns),
            reread=sum(counts[name] for name, turn in turns.items() if turn.read_as is not None),
        )

    def _unit_counts(self) -> dict[str, int]:
        """How many values the store has of the port's codes, by unit."""
        unit, count = self.find(
            f"""SELECT unit, count(*) FROM {self.relations("observation")}
            WHERE {self.asked("observation", "")} AND number IS NOT NULL AND unit IS NOT NULL
            GROUP BY unit ORDER BY unit"""
        )
        return dict(zip(unit.tolist(), count.tolist(), strict=True))

    def truth(self) -> Column:
        record, back, days, truth = self.history(("truth",), "o.truth IS NOT NULL")
        return Column(Cells(record, back, days, truth.astype(np.float64)))

    def coded(self) -> Column:
        port = self.port
        if port.kind == "category":
            meaning = {spelled: float(index) for index, spelled in enumerate(port.categories)}
        else:
            meaning = dict.fromkeys(port.source.negatives, 0.0) | dict.fromkeys(port.source.values, 1.0)
        usable = "o.value_system = $values AND o.value_code IS NOT NULL"
        record, back, days, spelled = self.history(("value_code",), usable, values=port.source.system)
        value = np.array([meaning.get(code, np.nan) for code in spelled], dtype=np.float64)
        return Column(Cells(record, back, days, value))

    def condition(self) -> Column:
        return self._ever("condition", "onset", REAL_CONDITION)

    def medication(self) -> Column:
        return self._ever("medication_request", "authored", REAL_REQUEST)

    def _ever(self, table: str, moment: str, usable: str) -> Column:
        dated, asked = last_possible(moment), self.asked(table)
        sql = _EVER.format(table=self.relations(table), asked=asked, dated=dated, usable=usable)
        record, before = self.find(sql)
        first = np.full(self.records, -np.inf)
        first[record] = before / _DAY
        return self.state(lambda record, days: (first[record] > days).astype(np.float64))


def _means(cells: Cells) -> Cells:
    """One cell per record and step: the mean value, at the mean of the times. Cells come sorted by both."""
    begins = np.ones(len(cells.record), dtype=bool)
    begins[1:] = (np.diff(cells.record) != 0) | (np.diff(cells.back) != 0)
    group = np.cumsum(begins) - 1
    count = np.bincount(group)
    days, value = (np.bincount(group, weights=part) / count for part in (cells.days, cells.value))
    return Cells(cells.record[begins], cells.back[begins], days, value)


_KINDS: dict[str, Callable[[_Reader], Column]] = {
    "age": _Reader.age,
    "sex": _Reader.sex,
    "observation": _Reader.quantity,
    "observation-boolean": _Reader.truth,
    "observation-code": _Reader.coded,
    "condition": _Reader.condition,
    "medication": _Reader.medication,
}


def read_column(
    connection: duckdb.DuckDBPyConnection,
    relations: Relations,
    port: Port,
    profile: Profile,
    records: int,
    codings: PortCodings = PortCodings(),
) -> Column:
    """The column of ``port`` over table ``record``, of the codes that ``codings`` say.

    Raises ViewError for a source of an unknown type.
    """
    kind = _KINDS.get(port.source.type)
    if kind is None:
        raise ViewError(f"port {port.name} has a source that this node cannot read", code="VHT-VIEW-SOURCE")
    return kind(_Reader(connection, relations, port, profile, records, codings))


def count_partial_dates(
    connection: duckdb.DuckDBPyConnection, relations: Relations, port: Port, codings: PortCodings
) -> int:
    """Dates behind ``port`` that are a year or a month alone: of resources of its codes, or of births; of table
    ``person``, whether they count in a record or not."""
    source = port.source
    if source.type == "sex":
        return 0
    if source.type == "age":
        born = f"SELECT count(*) FROM {relations('patient')} SEMI JOIN person USING (subject) WHERE birth_date_partial"
        [[count]] = connection.execute(born).fetchall()
        return int(count)
    table, moment = _DATED.get(source.type, ("observation", "effective"))
    asked = among(codings.of(source), "o", table)
    [[count]] = connection.execute(_PARTIAL.format(table=relations(table), moment=moment, asked=asked)).fetchall()
    return int(count)
