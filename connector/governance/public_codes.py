"""Which codes and units say something that is public: only those may stand in what leaves under a permit.

A code is told where its system is a public terminology and the code has the form, and where there is one the check
digit, of that terminology; where its system is a small closed list of HL7; or where the node names it. Displays and
texts are never told. What is written in a unit's braces is text, too: the usual words stay, others are taken out.
"""

import re
from collections.abc import Collection
from functools import lru_cache

from connector.fhir.codes import CODE_SYSTEMS
from vht_federate.domain.ucum import is_quantity, is_ucum

__all__ = ["is_public", "public_unit"]

_HL7 = "http://terminology.hl7.org/CodeSystem"
# system -> form of its codes
_TERMINOLOGIES = {
    "http://loinc.org": re.compile(r"(?:[0-9]{1,7}|LA[0-9]{1,7}|LP[0-9]{1,7})-[0-9]"),
    "http://snomed.info/sct": re.compile(r"[1-9][0-9]{5,17}"),
    **dict.fromkeys(
        CODE_SYSTEMS["atc"].addresses,
        re.compile(r"[A-DGHJL-NPRSV](?:[0-9]{2}(?:[A-Z](?:[A-Z](?:[0-9]{2})?)?)?)?"),
    ),
    "http://www.nlm.nih.gov/research/umls/rxnorm": re.compile(r"[1-9][0-9]{0,6}"),
    "http://hl7.org/fhir/sid/icd-10": re.compile(r"[A-Z][0-9][0-9A-Z](?:\.[0-9A-Z]{1,2})?"),
    **dict.fromkeys(
        CODE_SYSTEMS["icd-10-gm"].addresses, re.compile(r"[A-Z][0-9]{2}(?:\.(?:[0-9]{1,2}|[0-9]?-))?[+*!†]?")
    ),
    **dict.fromkeys(CODE_SYSTEMS["pzn"].addresses, re.compile(r"[0-9]{8}")),
    "http://hl7.org/fhir/sid/icd-10-cm": re.compile(r"[A-Z][0-9][0-9A-Z](?:\.[0-9A-Z]{1,4})?"),
}
_LISTS = {
    f"{_HL7}/condition-clinical": "active recurrence relapse inactive remission resolved",
    f"{_HL7}/condition-ver-status": "unconfirmed provisional differential confirmed refuted entered-in-error",
    f"{_HL7}/condition-category": "problem-list-item encounter-diagnosis",
    f"{_HL7}/observation-category": "social-history vital-signs imaging laboratory procedure survey exam therapy "
    "activity",
    f"{_HL7}/v3-ActCode": "AMB EMER FLD HH IMP ACUTE NONAC OBSENC PRENC SS VR",
    f"{_HL7}/v3-ObservationInterpretation": "A AA HH LL H L N POS NEG IND R S I",
    f"{_HL7}/data-absent-reason": "unknown asked-unknown temp-unknown not-asked asked-declined masked not-applicable "
    "unsupported as-text error not-a-number negative-infinity positive-infinity not-performed not-permitted",
}
_WORDS = frozenset(
    [
        "score",
        "nominal",
        "count",
        "#",
        "beats",
        "Beats",
        "INR",
        "SG",
        "presence",
        "copies",
        "T-score",
        "vessels",
        "ratio",
        "index",
        "titer",
        "CFU",
        "cells",
        "WBC",
        "RBC",
        "1.73_m2",
        "1.73m2",
    ]
)
_ANNOTATION = re.compile(r"\{([^{}]*)\}")
_VERHOEFF = (
    (0, 1, 2, 3, 4, 5, 6, 7, 8, 9),
    (1, 5, 7, 6, 2, 8, 3, 0, 9, 4),
    (5, 8, 0, 3, 7, 9, 6, 1, 4, 2),
    (8, 9, 1, 6, 0, 4, 3, 5, 2, 7),
    (9, 4, 5, 3, 1, 2, 6, 8, 7, 0),
    (4, 2, 8, 6, 5, 7, 3, 9, 0, 1),
    (2, 7, 9, 3, 8, 0, 6, 4, 1, 5),
    (7, 0, 4, 6, 9, 1, 3, 2, 5, 8),
)


def is_public(system: str, code: str, also: Collection[tuple[str, str]] = ()) -> bool:
    """Whether ``code`` of ``system`` is a public one; ``also`` are (system, code) that the node names itself."""
    return _listed(system, code) or (system, code) in also


@lru_cache(maxsize=65_536)
def _listed(system: str, code: str) -> bool:
    form = _TERMINOLOGIES.get(system)
    if form is None:
        return code in _LISTS.get(system, "").split()
    if not form.fullmatch(code):
        return False
    if system == "http://snomed.info/sct":
        return _verhoeff(code)
    if system in CODE_SYSTEMS["pzn"].addresses:
        return _modulo_11(code)
    return _luhn(code) if code[0].isdigit() and system == "http://loinc.org" else True


def _verhoeff(digits: str) -> bool:
    """SNOMED CT's check digit (Release File Specification, 6.3): the product in the dihedral group is the identity."""
    total = 0
    for place, digit in enumerate(reversed(digits)):
        other = _VERHOEFF[place % 8][int(digit)]
        if total < 5:
            total = (total + other) % 5 + (5 if other > 4 else 0)
        else:
            total = (total - other) % 5 + (0 if other > 4 else 5)
    return total == 0


def _modulo_11(code: str) -> bool:
    """The PZN's check digit: the sum of the first seven, each times its place, modulo 11; no code leaves 10."""
    return sum(place * int(digit) for place, digit in enumerate(code[:7], 1)) % 11 == int(code[7])


def _luhn(code: str) -> bool:
    """LOINC's check digit, modulus 10; codes of answers and parts (LA…, LP…) are not asked for theirs."""
    digits = code.replace("-", "")
    doubled = [int(digit) * (1 + place % 2) for place, digit in enumerate(reversed(digits))]
    return sum(value - 9 if value > 9 else value for value in doubled) % 10 == 0


@lru_cache(maxsize=16_384)
def public_unit(code: str) -> str | None:
    """A UCUM unit without words that are not public; None for what is no unit, or would mean something else without."""
    if not is_ucum(code):
        return None
    for text in _ANNOTATION.findall(code):
        if text not in _WORDS:
            if is_quantity(text):
                return None  # a quantity in an annotation is a part of the unit
            code = code.replace(f"{{{text}}}", "{}")
    alone = re.sub(r"(^|[./(])\{\}", r"\g<1>1", code).replace("{}", "")
    return alone if is_ucum(alone) else None
