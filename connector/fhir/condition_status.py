"""Is this Condition true, and does it go on? Each status is read by its code system, wherever its coding stands.

R4 binds ``verificationStatus`` and ``clinicalStatus`` to one code system each (9.2.4.1, required), so a coding of that
system decides, whatever stands beside it. Where there is none, SNOMED CT's own words for the same are read. A status
that says neither (another system, a code that the system lacks, a text alone) is none that we know: the Condition is
set aside, for it may say that the patient does not have it.

German ICD-10-GM codings carry how sure the diagnosis is in an extension (``Diagnosesicherheit`` of fhir.de): G
confirmed, V suspected, A excluded, Z a past condition. Of what both say, the more cautious stands.
"""

from collections.abc import Mapping

from connector.fhir.codes import SNOMED
from connector.fhir.typed_elements import Node, Quarantine, code, codings, member, members

__all__ = ["CLINICAL_SYSTEM", "VERIFICATION_SYSTEM", "condition_status"]

VERIFICATION_SYSTEM = "http://terminology.hl7.org/CodeSystem/condition-ver-status"
CLINICAL_SYSTEM = "http://terminology.hl7.org/CodeSystem/condition-clinical"
# As HL7 named the same before R4, and where no system is given.
_VERIFICATION_SYSTEMS = frozenset({VERIFICATION_SYSTEM, "http://hl7.org/fhir/condition-ver-status", None})
_CLINICAL_SYSTEMS = frozenset({CLINICAL_SYSTEM, "http://hl7.org/fhir/condition-clinical", None})

# Of several, the first in this order stands: for a verification the most cautious, else the most specific.
_VERIFICATIONS = ("entered-in-error", "refuted", "differential", "provisional", "unconfirmed", "confirmed")
_CLINICALS = ("recurrence", "relapse", "active", "resolved", "remission", "inactive")
_VERIFICATION_OF_SNOMED = {
    "723510000": "entered-in-error",
    "410516002": "refuted",  # known absent
    "410594000": "refuted",  # definitely not present
    "723511001": "refuted",
    "415684004": "provisional",  # suspected
    "410592001": "provisional",  # probably present
    "410590009": "unconfirmed",  # known possible
    "410605003": "confirmed",  # confirmed present
}
_CLINICAL_OF_SNOMED = {
    "246455001": "recurrence",
    "263855007": "relapse",
    "55561003": "active",
    "723506003": "resolved",
    "413322009": "resolved",
    "277022003": "remission",
    "73425007": "inactive",
}
_CERTAINTY = frozenset(
    f"{scheme}://fhir.de/StructureDefinition/icd-10-gm-diagnosesicherheit" for scheme in ("http", "https")
)
_VERIFICATION_OF_CERTAINTY = {"G": "confirmed", "V": "provisional", "A": "refuted", "Z": "confirmed"}


def condition_status(node: Node) -> tuple[str | None, str | None]:
    """(verification, clinical) of a Condition, as codes of R4's two code systems; None where nothing is said.

    Raises Quarantine ``code`` for a status that is said in words that we do not know.
    """
    stated = _stated(node, "verificationStatus", _VERIFICATION_SYSTEMS, _VERIFICATIONS, _VERIFICATION_OF_SNOMED)
    clinical = _stated(node, "clinicalStatus", _CLINICAL_SYSTEMS, _CLINICALS, _CLINICAL_OF_SNOMED)
    certainties = _certainties(node)
    said = {stated, *(_VERIFICATION_OF_CERTAINTY[letter] for letter in certainties)}
    verification = next((status for status in _VERIFICATIONS if status in said), None)
    return verification, clinical or ("resolved" if "Z" in certainties else None)


def _stated(
    node: Node, key: str, systems: frozenset[str | None], codes: tuple[str, ...], of_snomed: Mapping[str, str]
) -> str | None:
    concept = member(node, key, "Condition")
    if concept is None:
        return None
    where = f"Condition.{key}"
    all_codings = codings(concept, where)
    said = {code for system, code in all_codings if system in systems and (system or code in codes)}
    if not said:
        said = {of_snomed[code] for system, code in all_codings if system == SNOMED and code in of_snomed}
    if not said.issubset(codes) or (not said and (all_codings or concept.get("text") is not None)):
        raise Quarantine("code", where)
    return next((status for status in codes if status in said), None)


def _certainties(node: Node) -> set[str]:
    """The letters of ``Diagnosesicherheit`` on the codings of ``Condition.code``."""
    letters = set()
    for coding in members(member(node, "code", "Condition") or {}, "coding", "Condition.code"):
        if "extension" in coding:
            for extension in members(coding, "extension", "Condition.code.coding"):
                if extension.get("url") in _CERTAINTY:
                    letters.add(_letter(extension))
    return letters


def _letter(extension: Node) -> str:
    where = "Condition.code.coding.extension"
    value = member(extension, "valueCoding", where)
    letter = code(extension, "valueCode", where) if value is None else code(value, "code", f"{where}.valueCoding")
    if letter not in _VERIFICATION_OF_CERTAINTY:
        raise Quarantine("code", where)
    return letter
