"""How FHIR R4 resources refer to each other (2.3.0 References; ``urn:uuid:`` is what exports without a server have)."""

import re

__all__ = ["encounter_id_of", "medication_id_of", "patient_id_of", "type_of"]

_ID = r"([A-Za-z0-9\-.]{1,64})(?:/_history/[^/\s]+)?"
_REFERENCE = rf"(?:urn:uuid:|(?:https?://[^\s?#]+/)?%s/){_ID}"
_PATIENT, _ENCOUNTER, _MEDICATION = (re.compile(_REFERENCE % kind) for kind in ("Patient", "Encounter", "Medication"))
_TYPED = re.compile(rf"(?:https?://[^\s?#]+/)?([A-Z][A-Za-z]+)/{_ID}")


def patient_id_of(reference: str) -> str | None:
    """The Patient.id in ``Patient/ID``, ``urn:uuid:ID`` or an absolute URL; None for any other reference."""
    match = _PATIENT.fullmatch(reference)
    return match[1] if match else None


def encounter_id_of(reference: str) -> str | None:
    """The Encounter.id in ``Encounter/ID``, ``urn:uuid:ID`` or an absolute URL; None for any other reference."""
    match = _ENCOUNTER.fullmatch(reference)
    return match[1] if match else None


def medication_id_of(reference: str) -> str | None:
    """The Medication.id in ``Medication/ID``, ``urn:uuid:ID`` or an absolute URL; None for any other reference."""
    match = _MEDICATION.fullmatch(reference)
    return match[1] if match else None


def type_of(reference: str) -> str | None:
    """The type in ``Type/ID`` or an absolute URL; None where a reference names none."""
    match = _TYPED.fullmatch(reference)
    return match[1] if match else None
