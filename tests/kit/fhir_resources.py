"""Small FHIR resources for the intake's tests."""

import gzip
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

KEY = b"n" * 32
Resource = dict[str, Any]
LOINC, SNOMED, UCUM = "http://loinc.org", "http://snomed.info/sct", "http://unitsofmeasure.org"


def _changed(resource: Resource, more: Resource) -> Resource:
    """None takes an element away."""
    return {name: value for name, value in (resource | more).items() if value is not None}


def patient(number: int = 1, **more: Any) -> Resource:
    return _changed({"resourceType": "Patient", "id": f"p{number}", "gender": "male", "birthDate": "1950-03-04"}, more)


def observation(ident: str, number: int = 1, **more: Any) -> dict[str, Any]:
    resource = {
        "resourceType": "Observation",
        "id": ident,
        "status": "final",
        "code": {"coding": [{"system": LOINC, "code": "8480-6"}]},
        "subject": {"reference": f"Patient/p{number}"},
        "effectiveDateTime": "2009-05-06",
        "valueQuantity": {"value": 140, "unit": "mm[Hg]", "system": UCUM, "code": "mm[Hg]"},
    }
    return _changed(resource, more)


def quantity(value: Any, unit: str) -> dict[str, Any]:
    return {"value": value, "unit": unit, "system": UCUM, "code": unit}


def condition(ident: str, code: str, onset: str, number: int = 1, **more: Any) -> dict[str, Any]:
    resource = {
        "resourceType": "Condition",
        "id": ident,
        "code": {"coding": [{"system": SNOMED, "code": code}]},
        "subject": {"reference": f"Patient/p{number}"},
        "onsetDateTime": onset,
    }
    return _changed(resource, more)


def prescription(ident: str, code: str, authored: str, number: int = 1, **more: Any) -> dict[str, Any]:
    resource = {
        "resourceType": "MedicationRequest",
        "id": ident,
        "status": "active",
        "intent": "order",
        "medicationCodeableConcept": {"coding": [{"system": "http://www.whocc.no/atc", "code": code}]},
        "subject": {"reference": f"Patient/p{number}"},
        "authoredOn": authored,
    }
    return _changed(resource, more)


def ndjson(items: Iterable[Any]) -> bytes:
    """Lines of dicts, or of bytes as they are."""
    return b"".join((item if isinstance(item, bytes) else json.dumps(item).encode()) + b"\n" for item in items)


def write(folder: Path, name: str, items: Iterable[Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    content = ndjson(items)
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder
