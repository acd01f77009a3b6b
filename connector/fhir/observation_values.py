"""The values of an Observation: each is accepted, or quarantined alone while its line is kept."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from connector.fhir.codes import Measure, features
from connector.fhir.typed_elements import Coding, Node, Quarantine, boolean, code, codings, member, number, text
from vht_federate.components.contract import Port
from vht_federate.domain.units import is_ucum

__all__ = ["UCUM", "Units", "Value", "Verdict", "read_value"]

UCUM = "http://unitsofmeasure.org"
VERDICTS_HELD = 65_536
_UNREAD = frozenset(
    f"value{kind}" for kind in ("DateTime", "Period", "Range", "Ratio", "SampledData", "String", "Time")
)
_READ = ("valueQuantity", "valueCodeableConcept", "valueBoolean", "valueInteger")


@dataclass(frozen=True)
class Units:
    """Which units a code may come in: those that become the unit of a port or of a feature which reads it; for other
    codes, any UCUM unit. Each verdict is made once."""

    ports: tuple[Port, ...] = ()

    @cached_property
    def _measures(self) -> Mapping[Coding, list[Measure]]:
        table: dict[Coding, list[Measure]] = {}
        for feature in features().values():
            if feature.unit is not None:
                for coding in feature.codes:
                    table.setdefault(coding, []).append(Measure.of_feature(feature))
        for port in self.ports:
            if port.source.type == "observation" and port.unit is not None:
                for port_code in port.source.codes:
                    table.setdefault((port.source.code_system, port_code), []).append(Measure.of_port(port))
        return table

    @cached_property
    def _verdicts(self) -> dict[tuple[str, tuple[Coding, ...]], bool]:
        return {}

    def accept(self, unit: str, meanings: Iterable[Coding]) -> bool:
        meaning_tuple = tuple(meanings)
        key = (unit, meaning_tuple)
        verdict = self._verdicts.get(key)
        if verdict is None:
            if len(self._verdicts) >= VERDICTS_HELD:
                self._verdicts.clear()
            verdict = self._verdicts[key] = self._judge(unit, meaning_tuple)
        return verdict

    def _judge(self, unit: str, meanings: tuple[Coding, ...]) -> bool:
        """Every code that somebody reads must be readable in this unit."""
        readers = [self._measures[coding] for coding in meanings if coding in self._measures]
        if not readers:
            return is_ucum(unit)
        return all(any(measure.turn(unit) for measure in measures) for measures in readers)


@dataclass(frozen=True, slots=True)
class Value:
    """One accepted value: a number with its unit, a truth, or codes."""

    number: float | None = None
    unit: str | None = None
    truth: bool | None = None
    codes: tuple[Coding, ...] = ()


@dataclass(slots=True)
class Verdict:
    """What came of the values of one Observation. ``rejected``: (reason, path) of each quarantined value."""

    accepted: int = 0
    rejected: list[tuple[str, str]] = field(default_factory=list)


def read_value(node: Node, where: str, meanings: list[Coding], units: Units, verdict: Verdict) -> Value | None:
    """The value[x] of an Observation or of a component that means ``meanings``; None without a usable one.

    Raises Quarantine for a wrong type or for two values at once: that line is malformed as a whole.
    """
    present = [key for key in node if key.startswith("value") and node[key] is not None]
    if not present:
        return None
    if len(present) > 1:
        raise Quarantine("choice", f"{where}.value[x]")
    kind = present[0]
    if kind not in _READ:
        # an element we never heard of is not repeated, not even by name
        known = kind in _UNREAD
        verdict.rejected.append(("unread-type", f"{where}.{kind if known else 'value[x]'}"))
        return None
    value = _READERS[kind](node, where, meanings, units)
    if type(value) is str:
        verdict.rejected.append((value, f"{where}.{kind}"))
        return None
    verdict.accepted += 1
    assert type(value) is Value
    return value


def _quantity(node: Node, where: str, meanings: list[Coding], units: Units) -> Value | str:
    quantity = member(node, "valueQuantity", where) or {}
    where = f"{where}.valueQuantity"
    amount = number(quantity, "value", where)
    system, unit_code = code(quantity, "system", where), code(quantity, "code", where)
    if amount is None:
        return "missing-number"
    if code(quantity, "comparator", where) is not None:
        return "comparator"
    if unit_code is None:
        unit = text(quantity, "unit", where)
        if unit is None:
            return "missing-unit"
    elif system != UCUM:
        return "unit-system"
    else:
        unit = unit_code
    return Value(number=amount, unit=unit) if units.accept(unit, meanings) else "unknown-unit"


def _concept(node: Node, where: str, _meanings: list[Coding], _units: Units) -> Value | str:
    value_codings = codings(member(node, "valueCodeableConcept", where), f"{where}.valueCodeableConcept")
    return Value(codes=tuple(value_codings)) if value_codings else "no-code"


def _truth(node: Node, where: str, _meanings: list[Coding], _units: Units) -> Value | str:
    return Value(truth=boolean(node, "valueBoolean", where))


def _integer(node: Node, where: str, meanings: list[Coding], units: Units) -> Value | str:
    amount = node["valueInteger"]
    if type(amount) is not int:
        raise Quarantine("type", f"{where}.valueInteger")
    # It counts something: as a ratio, 7 would be 700 %.
    return Value(number=float(amount), unit="1") if units.accept("{integer}", meanings) else "unknown-unit"


_READERS: dict[str, Any] = {
    "valueQuantity": _quantity,
    "valueCodeableConcept": _concept,
    "valueBoolean": _truth,
    "valueInteger": _integer,
}
