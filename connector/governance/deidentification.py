"""Resources as they may be told under one permit: pseudonymous, their dates moved, and nothing but listed elements.

Keys are HMAC-SHA256 under the permit's key, which only the node holds: two permits cannot be linked (EHDS, Article 66;
GDPR, Article 4(5)). All dates of a patient move by the same number of days, 1 to 365 into the past, chosen by the
permit's key and the patient: intervals stay to the second. A date that would be told as 90 years ago or more, a birth
date first of all, is not told; the true date decides nothing, since the day on which it did would give the shift away.
A duration of 90 years or more is told as 90: nobody is seen to be over 89 (as in 45 CFR 164.514(b)(2)(i)(C)). Fails
closed: a resource that holds a ``modifierExtension`` anywhere, or means something we do not read, is not told at all;
an element that is not on the list, or not of its type, is absent.
"""

import hmac
from collections.abc import Collection, Mapping
from datetime import date, timedelta
from typing import Any

from connector.fhir.resources import refuse_modifiers
from connector.fhir.subject_keys import ID
from connector.fhir.typed_elements import Quarantine
from connector.governance.element_rules import RULES, ElementRedaction, masked, patient_of
from vht_federate.errors import InputError

__all__ = ["Deidentifier"]

_KEY_BYTES, _SPAN_DAYS = 32, 365


class Deidentifier:
    """One permit's view of the node's resources. ``now`` is the day of the telling; ``codes`` are (system, code) that
    are public though their system is local: those of installed components.

    Raises InputError VHT-INPUT-KEY for a key that has not 32 bytes.
    """

    def __init__(self, permit_key: bytes, *, now: date, codes: Collection[tuple[str, str]] = ()) -> None:
        if len(permit_key) != _KEY_BYTES:
            raise InputError("a permit's key has 32 bytes", code="VHT-INPUT-KEY")
        self._key, self.now, self.codes = permit_key, now, frozenset(codes)

    def patient(self, subject: str) -> str:
        """What stands for a patient: the pseudonym of ``governance.pseudonyms``."""
        return hmac.digest(self._key, subject.encode(), "sha256").hex()

    def identifier(self, resource_type: str, key: str) -> str:
        """What stands for a resource."""
        if resource_type == "Patient":
            return self.patient(key)
        return hmac.digest(self._key, f"{resource_type}/{key}".encode(), "sha256").hex()

    def shift(self, subject: str) -> timedelta:
        """What is taken off every date of a patient: 1 to 365 days."""
        drawn = int.from_bytes(hmac.digest(self._key, f"shift|{subject}".encode(), "sha256"), "big")
        return timedelta(days=1 + drawn % _SPAN_DAYS)

    def resource(self, resource: Mapping[str, Any]) -> dict[str, Any] | None:
        """A new resource; None for one that may not be told."""
        kind = resource.get("resourceType")
        rules = RULES.get(kind) if type(kind) is str else None
        resource_id = resource.get("id")
        if (
            rules is None
            or type(resource_id) is not str
            or not ID.fullmatch(resource_id)
            or resource.get("implicitRules") is not None
        ):
            return None
        try:
            refuse_modifiers(dict(resource))
        except Quarantine:
            return None
        subject = resource_id if kind == "Patient" else patient_of(resource.get("subject"))
        if subject is None or resource.get("link") is not None:
            return None
        deidentified: dict[str, Any] = {"resourceType": kind, "id": self.identifier(str(kind), resource_id)}
        redaction = ElementRedaction(self, subject)
        deidentified |= (
            redaction.observed(resource, rules) if kind == "Observation" else redaction.members(resource, rules)
        )
        if kind == "Patient" and resource.get("birthDate") is not None and "birthDate" not in deidentified:
            deidentified["_birthDate"] = masked()
        if kind == "Encounter":
            deidentified.setdefault("class", masked())  # FHIR requires it
        return deidentified
