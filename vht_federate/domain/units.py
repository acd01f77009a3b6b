"""In which units a measurement may come, and how each becomes the wanted one: UCUM, and what chemistry adds to it.

Mass and substance concentrations meet through the analyte's molar mass. HbA1c in % (NGSP) and in mmol/mol (IFCC)
meet through the master equation NGSP = 0.09148 * IFCC + 2.152 (Hoelzel et al., Clin Chem 2004;50:166-74).

UCUM's annotations mean nothing, and are gone before a unit is compared by its spelling. A unit that is an annotation
alone (``{%}``, ``{score}``) counts, and nobody knows what: it becomes the unit 1 and no ratio: 7 ``{%}`` is no 700 %.
"""

import re
from functools import lru_cache

from vht_federate.domain.ucum import Affine, affine, is_ucum, mass_to_substance, without_annotations

__all__ = ["HBA1C_CODES", "Affine", "conversion", "is_ucum"]

HBA1C_CODES = frozenset({"4548-4", "59261-8"})  # LOINC
_NGSP_OF_IFCC = Affine(0.09148, 2.152)
_HBA1C = {("mmol/mol", "%"): _NGSP_OF_IFCC, ("%", "mmol/mol"): _NGSP_OF_IFCC.inverse()}
_ANNOTATION_ALONE = re.compile(r"(?:\{[^{}]*\})+")


@lru_cache(maxsize=16_384)
def conversion(unit: str, to: str, *, loinc: str | None = None, molar_mass: float | None = None) -> Affine | None:
    """The map from UCUM ``unit`` to UCUM ``to``; None for a unit that is unknown or measures something else.

    ``molar_mass`` in g/mol opens mass <-> substance concentrations; ``loinc`` of an HbA1c opens % <-> mmol/mol.
    Equal units need no table: nothing is loaded for them.
    """
    if unit == to:
        return Affine(1.0)
    if _counts(unit) != _counts(to) and not {unit, to} & {"1"}:
        return None
    if loinc in HBA1C_CODES and (way := _hba1c(without_annotations(unit), without_annotations(to))) is not None:
        return way
    same = affine(unit, to)
    if same is None and molar_mass is not None:
        return mass_to_substance(unit, to, molar_mass)
    return same


def _counts(unit: str) -> bool:
    return _ANNOTATION_ALONE.fullmatch(unit) is not None


def _hba1c(unit: str, to: str) -> Affine | None:
    """By the master equation, from whatever is the same as one of its units to whatever is the same as the other."""
    if (unit, to) in _HBA1C:
        return _HBA1C[unit, to]
    for (source, target), way in _HBA1C.items():
        there, onward = affine(unit, source), affine(target, to)
        if there is not None and onward is not None:
            return there.then(way).then(onward)
    return None
