"""Resources that an intake sets aside, and values that it does, each with the reason that it must give."""

from typing import Any

from kit.fhir_resources import condition, observation, patient, prescription, quantity

__all__ = ["BROKEN", "VALUES"]


BROKEN: list[tuple[Any, str, str]] = [
    (b'{"resourceType": "Patient", "id": "p1"', "malformed-json", ""),
    (b"\xff\xfe\x00", "malformed-json", ""),
    (b"[" * 5000, "nested-too-deep", ""),
    (b'{"resourceType":"Patient","id":"x","birthDate":NaN}', "malformed-json", ""),
    (b"", "blank-line", ""),
    (b"[1, 2]", "not-an-object", ""),
    (b'"Patient"', "not-an-object", ""),
    (b"{}", "missing", "resourceType"),
    ({"resourceType": 7}, "type", "resourceType"),
    ({"resourceType": "Procedure", "id": "x"}, "unsupported-type", "resourceType"),
    ({"resourceType": "Patient"}, "missing", "Patient.id"),
    (patient(id=5), "type", "Patient.id"),
    (patient(id="a b"), "format", "Patient.id"),
    (patient(id="x" * 65), "format", "Patient.id"),
    (patient(gender="m"), "code", "Patient.gender"),
    (patient(birthDate="04.03.1950"), "format", "Patient.birthDate"),
    (patient(birthDate="1950-02-30"), "format", "Patient.birthDate"),
    (patient(birthDate="0000-01-01"), "format", "Patient.birthDate"),
    (patient(birthDate=1950), "type", "Patient.birthDate"),
    (patient(active="yes"), "type", "Patient.active"),
    (patient(deceasedBoolean="false"), "type", "Patient.deceasedBoolean"),
    (patient(deceasedDateTime="2010-01-01T10:00"), "format", "Patient.deceasedDateTime"),
    (patient(implicitRules="urn:rules"), "implicit-rules", "Patient.implicitRules"),
    (patient(modifierExtension=[{"url": "urn:x"}]), "modifier-extension", "modifierExtension"),
    (patient(contact=[{"modifierExtension": [{"url": "urn:x"}]}]), "modifier-extension", "modifierExtension"),
    (
        b'{"resourceType":"Patient","id":"p1","modifier\\u0045xtension":[{"url":"urn:x"}]}',
        "modifier-extension",
        "modifierExtension",
    ),
    (
        observation("o", component=[{"code": {}, "modifierExtension": [{"url": "urn:x"}]}]),
        "modifier-extension",
        "modifierExtension",
    ),
    (observation("o", status=None), "missing", "Observation.status"),
    (observation("o", status="done"), "code", "Observation.status"),
    (observation("o", subject=None), "no-subject", "Observation.subject"),
    (observation("o", subject="Patient/p1"), "type", "Observation.subject"),
    (observation("o", subject={"reference": "Group/1"}), "not-a-patient", "Observation.subject.reference"),
    (observation("o", subject={"identifier": {"value": "1"}}), "logical-reference", "Observation.subject.reference"),
    (observation("o", subject={"reference": "p1"}), "reference", "Observation.subject.reference"),
    (observation("o", subject={"reference": "#p"}), "contained-subject", "Observation.subject.reference"),
    (
        observation("o", subject={"reference": "urn:uuid:1", "type": "Device"}),
        "not-a-patient",
        "Observation.subject.reference",
    ),
    (
        observation("o", subject={"reference": "Patient?identifier=1"}),
        "unresolved",
        "Observation.subject.reference",
    ),
    (observation("o", effectiveDateTime=None), "no-time", "Observation.effective[x]"),
    (observation("o", effectiveDateTime="2009-W03"), "format", "Observation.effectiveDateTime"),
    (observation("o", effectiveDateTime="2009-05-06T25:00:00Z"), "format", "Observation.effectiveDateTime"),
    (observation("o", code="8480-6"), "type", "Observation.code"),
    (observation("o", code={"coding": {"code": "8480-6"}}), "type", "Observation.code.coding"),
    (observation("o", code={"coding": ["8480-6"]}), "type", "Observation.code.coding"),
    (observation("o", code={"coding": [{"code": 8480}]}), "type", "Observation.code.coding.code"),
    (observation("o", valueQuantity=quantity("140", "mm[Hg]")), "type", "Observation.valueQuantity.value"),
    (observation("o", valueQuantity=quantity(True, "mm[Hg]")), "type", "Observation.valueQuantity.value"),
    (observation("o", valueQuantity=140), "type", "Observation.valueQuantity"),
    (observation("o", valueBoolean=True), "choice", "Observation.value[x]"),
    (
        observation("o", valueQuantity=None, component=[{"valueQuantity": {"value": "1"}}]),
        "type",
        "Observation.component.valueQuantity.value",
    ),
    (observation("o", valueQuantity=None, valueBoolean="true"), "type", "Observation.valueBoolean"),
    (observation("o", valueQuantity=None, valueInteger=1.5), "type", "Observation.valueInteger"),
    (condition("c", "22298006", None), "no-time", "Condition.onset[x]"),  # type: ignore[arg-type]
    (prescription("m", "C09AA05", "2009", intent="wish"), "code", "MedicationRequest.intent"),
    (prescription("m", "C09AA05", "2009", doNotPerform="no"), "type", "MedicationRequest.doNotPerform"),
    (
        prescription("m", "C09AA05", "2009", medicationReference={"reference": "#m"}),
        "choice",
        "MedicationRequest.medication[x]",
    ),
    (
        prescription("m", "", "2009", medicationCodeableConcept=None, medicationReference={"reference": "#m"}),
        "unresolved",
        "MedicationRequest.medicationReference",
    ),
    (
        {"resourceType": "Encounter", "id": "e", "status": "over", "subject": {"reference": "Patient/p1"}},
        "code",
        "Encounter.status",
    ),
]


VALUES: list[tuple[dict[str, Any], str | None]] = [
    ({"valueQuantity": quantity(140, "mm[Hg]")}, None),
    ({"valueQuantity": quantity(18.7, "kPa")}, None),
    ({"valueQuantity": {"value": 140, "unit": "mm[Hg]"}}, None),
    ({"valueQuantity": quantity(140, "furlong")}, "unknown-unit"),
    ({"valueQuantity": quantity(140, "mg/dL")}, "unknown-unit"),  # known, but no pressure
    ({"valueQuantity": {"value": 140}}, "missing-unit"),
    ({"valueQuantity": {"value": 140, "code": "mm[Hg]"}}, "unit-system"),
    ({"valueQuantity": {"value": 140, "code": "mm[Hg]", "system": "urn:local"}}, "unit-system"),
    ({"valueQuantity": quantity(140, "mm[Hg]") | {"comparator": "<"}}, "comparator"),
    ({"valueQuantity": {"unit": "mm[Hg]"}}, "missing-number"),
    ({"valueQuantity": None, "valueString": "about 140"}, "unread-type"),
    ({"valueQuantity": None, "valueCodeableConcept": {"text": "high"}}, "no-code"),
]
