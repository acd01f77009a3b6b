"""In which units a measurement may come, and how each becomes the wanted one: UCUM, and what chemistry adds to it.

Mass and substance concentrations meet through the analyte's molar mass. HbA1c in % (NGSP) and in mmol/mol (IFCC)
meet through the master equation NGSP = 0.09148 * IFCC + 2.152 (Hoelzel et al., Clin Chem 2004;50:166-74).
"""

from functools import lru_cache

from vht_federate.domain.ucum import Affine, affine, is_ucum, mass_to_substance

__all__ = ["HBA1C_CODES", "Affine", "conversion", "is_ucum"]

HBA1C_CODES = frozenset({"4548-4", "59261-8"})  # LOINC
_NGSP_OF_IFCC = Affine(0.09148, 2.152)
_HBA1C = {("mmol/mol", "%"): _NGSP_OF_IFCC, ("%", "mmol/mol"): _NGSP_OF_IFCC.inverse()}


@lru_cache(maxsize=16_384)
def conversion(unit: str, to: str, *, loinc: str | None = None, molar_mass: float | None = None) -> Affine | None:
    """The map from UCUM ``unit`` to UCUM ``to``; None for a unit that is unknown or measures something else.

    ``molar_mass`` in g/mol opens mass <-> substance concentrations; ``loinc`` of an HbA1c opens % <-> mmol/mol.
    Equal units need no table: nothing is loaded for them.
    """
    if unit == to:
        return Affine(1.0)
    if loinc in HBA1C_CODES and (unit, to) in _HBA1C:
        return _HBA1C[unit, to]
    same = affine(unit, to)
    if same is None and molar_mass is not None:
        return mass_to_substance(unit, to, molar_mass)
    return same
