"""How FHIR R4 resources refer to each other (2.3.0 References; ``urn:uuid:`` is what exports without a server have)."""

import re

__all__ = ["encounter_id_of", "patient_id_of"]

_REFERENCE = r"(?:urn:uuid:|(?:https?://[^\s?#]+/)?{type}/)([A-Za-z0-9\-.]{{1,64}})(?:/_history/[^/\s]+)?"
_PATIENT, _ENCOUNTER = (re.compile(_REFERENCE.format(type=kind)) for kind in ("Patient", "Encounter"))


def patient_id_of(reference: str) -> str | None:
    """The Patient.id in ``Patient/ID``, ``urn:uuid:ID`` or an absolute URL; None for any other reference."""
    match = _PATIENT.fullmatch(reference)
    return match[1] if match else None


def encounter_id_of(reference: str) -> str | None:
    """The Encounter.id in ``Encounter/ID``, ``urn:uuid:ID`` or an absolute URL; None for any other reference."""
    match = _ENCOUNTER.fullmatch(reference)
    return match[1] if match else None
