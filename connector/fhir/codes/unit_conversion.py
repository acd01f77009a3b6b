"""What a unit becomes under a code: UCUM's map, the analyte's chemistry, and what the code itself says."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from connector.fhir.codes.features import Feature, feature_of
from vht_federate.components.contract import Port
from vht_federate.domain.units import Affine, conversion

__all__ = ["Measure", "UnitConversion"]


@dataclass(frozen=True)
class UnitConversion:
    """The map to the wanted unit. ``read_as``: the unit was taken for another one, as the code map says."""

    way: Affine
    read_as: str | None = None


@dataclass(frozen=True)
class Measure:
    """A quantity that is wanted in ``unit``."""

    unit: str
    loinc: str | None = None
    molar_mass: float | None = None
    read_as: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of_port(cls, port: Port) -> "Measure":
        """By the component's contract; the code map adds only how units under these codes are read."""
        feature = feature_of(port.source.code_system, port.source.codes)
        return cls(port.unit or "1", port.loinc, port.molar_mass, feature.read_as if feature else {})

    @classmethod
    def of_feature(cls, feature: Feature) -> "Measure":
        return cls(feature.unit or "1", next(iter(feature.loinc), None), feature.molar_mass, feature.read_as)

    def turn(self, unit: str) -> UnitConversion | None:
        """How a value in ``unit`` becomes one in the wanted unit; None where it cannot."""
        way = conversion(unit, self.unit, loinc=self.loinc, molar_mass=self.molar_mass)
        if way is not None:
            return UnitConversion(way)
        for spelled, meant_unit in self.read_as.items():
            there = conversion(unit, spelled)  # also where the same is spelled in another way
            onward = conversion(meant_unit, self.unit, loinc=self.loinc, molar_mass=self.molar_mass)
            if there is not None and onward is not None:
                return UnitConversion(there.then(onward), read_as=meant_unit)
        return None

    def turns(self, units: Iterable[str]) -> dict[str, UnitConversion]:
        """Those of ``units`` that can."""
        return {unit: turn for unit in units if (turn := self.turn(unit)) is not None}
