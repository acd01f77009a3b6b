"""Which UCUM units a measurement may come in, and how each becomes the port's own unit: an affine map, exactly.

The table is small and closed: a unit that is not here is unknown, and an unknown unit quarantines its value.
Mass and substance concentrations meet through the analyte's molar mass. HbA1c in % (NGSP) and in mmol/mol (IFCC)
meet through the master equation NGSP = 0.09148 * IFCC + 2.152 (Hoelzel et al., Clin Chem 2004;50:166-74).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

__all__ = ["KNOWN_UNITS", "Affine", "accepted_units"]

HBA1C_CODES = frozenset({"4548-4", "59261-8", "17856-6", "41995-2"})


@dataclass(frozen=True)
class Affine:
    """``x -> scale * x + offset``."""

    scale: float
    offset: float = 0.0

    def __call__(self, value: float) -> float:
        return self.scale * value + self.offset

    def inverse(self) -> "Affine":
        return Affine(1.0 / self.scale, -self.offset / self.scale)


# Each family: units of one dimension, as multiples of its first unit. UCUM annotations ({...}) carry no dimension.
_FAMILIES: tuple[Mapping[str, float], ...] = (
    {"mg/dL": 1.0, "mg/L": 0.1, "g/L": 100.0, "g/dL": 1000.0, "ug/dL": 0.001},
    {"mmol/L": 1.0, "umol/L": 0.001},
    {"mm[Hg]": 1.0, "kPa": 7.500616827},
    {"kg/m2": 1.0},
    {"mL/min/{1.73_m2}": 1.0, "mL/min": 1.0},
    {"/min": 1.0, "{beats}/min": 1.0, "{Beats}/min": 1.0},
    {"mm": 1.0, "cm": 10.0, "m": 1000.0, "[in_i]": 25.4},
    {"1": 1.0, "{vessels}": 1.0, "{count}": 1.0, "{score}": 1.0},
    {"a": 1.0, "mo": 1.0 / 12.0},
    {"kg": 1.0, "g": 0.001, "[lb_av]": 0.45359237},
    {"%": 1.0},
    {"mmol/mol": 1.0},
    {"Cel": 1.0},
    {"mmol/kg": 1.0},
    {"U/L": 1.0, "[iU]/L": 1.0},
    {"10*3/uL": 1.0, "10*9/L": 1.0},
    {"10*6/uL": 1.0, "10*12/L": 1.0},
    {"fL": 1.0},
    {"pg": 1.0},
    {"mg/g": 1.0},
)
_MASS, _SUBSTANCE = _FAMILIES[0], _FAMILIES[1]

KNOWN_UNITS: frozenset[str] = frozenset(unit for family in _FAMILIES for unit in family)


def accepted_units(unit: str, *, loinc: str | None = None, molar_mass: float | None = None) -> Mapping[str, Affine]:
    """Units in which a measurement in ``unit`` may arrive, each with its map to ``unit``.

    ``molar_mass`` in g/mol opens mass <-> substance concentrations; ``loinc`` of an HbA1c opens % <-> mmol/mol.
    A unit outside the table is accepted only as itself.
    """
    family = next((family for family in _FAMILIES if unit in family), {unit: 1.0})
    accepted = {name: Affine(factor / family[unit]) for name, factor in family.items()}
    if molar_mass:
        # 1 mmol/L is molar_mass mg/L, a tenth of it in mg/dL
        if family is _MASS:
            accepted |= {n: Affine(f * molar_mass / 10.0 / _MASS[unit]) for n, f in _SUBSTANCE.items()}
        elif family is _SUBSTANCE:
            accepted |= {n: Affine(f * 10.0 / molar_mass / _SUBSTANCE[unit]) for n, f in _MASS.items()}
    if loinc in HBA1C_CODES:
        to_percent = Affine(0.09148, 2.152)
        if unit == "%":
            accepted["mmol/mol"] = to_percent
        elif unit == "mmol/mol":
            accepted["%"] = to_percent.inverse()
    return MappingProxyType(accepted)
