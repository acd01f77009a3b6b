"""How FHIR R4 resources refer to patients (2.3.0 References, and ``urn:uuid:`` as exports without a server have it)."""

import re

__all__ = ["patient_id_of"]

_REFERENCE = re.compile(r"(?:urn:uuid:|(?:https?://[^\s?#]+/)?Patient/)([A-Za-z0-9\-.]{1,64})(?:/_history/[^/\s]+)?")


def patient_id_of(reference: str) -> str | None:
    """The Patient.id in ``Patient/ID``, ``urn:uuid:ID`` or an absolute URL; None for any other reference."""
    found = _REFERENCE.fullmatch(reference)
    return found[1] if found else None
