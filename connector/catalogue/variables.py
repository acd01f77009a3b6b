"""The variables of a node's dataset: what its store keeps of each FHIR R4 resource, in words.

The names are the columns of ``connector.fhir.resources.TABLES``; the subject is a keyed hash of Patient.id.
"""

__all__ = ["VARIABLES"]

_KEYS = (("subject", "string", "Pseudonym of the patient at this node, never disclosed"),)

# table -> (column, XSD datatype, description)
VARIABLES: dict[str, tuple[tuple[str, str, str], ...]] = {
    "Patient": (
        *_KEYS,
        ("bucket", "integer", "Fixed public split into training and test patients"),
        ("birth_date", "date", "Patient.birthDate"),
        ("gender", "string", "Patient.gender"),
        ("active", "boolean", "Patient.active"),
        ("deceased", "boolean", "Patient.deceased[x] says or implies death"),
        ("deceased_at", "dateTime", "Patient.deceasedDateTime"),
        (
            "deceased_at_until",
            "dateTime",
            "Last moment of Patient.deceasedDateTime, where it is a year or a month alone",
        ),
        ("birth_date_partial", "boolean", "Patient.birthDate is a year or a month alone"),
    ),
    "Observation": (
        *_KEYS,
        ("encounter", "string", "Pseudonym of the encounter it belongs to"),
        ("status", "string", "Observation.status"),
        ("effective", "dateTime", "Observation.effective[x]"),
        ("effective_until", "dateTime", "Last moment of Observation.effective[x], where it is a year or a month alone"),
        ("part", "integer", "Position of a component within a panel"),
        ("code_system", "string", "System of Observation.code, usually LOINC"),
        ("code", "string", "Observation.code"),
        ("number", "double", "Value of Observation.valueQuantity"),
        ("unit", "string", "UCUM unit of Observation.valueQuantity"),
        ("truth", "boolean", "Observation.valueBoolean"),
        ("value_system", "string", "System of Observation.valueCodeableConcept"),
        ("value_code", "string", "Code of Observation.valueCodeableConcept"),
    ),
    "Condition": (
        *_KEYS,
        ("encounter", "string", "Pseudonym of the encounter it belongs to"),
        ("verification", "string", "Condition.verificationStatus"),
        ("clinical", "string", "Condition.clinicalStatus"),
        ("onset", "dateTime", "Condition.onset[x]"),
        ("onset_until", "dateTime", "Last moment of Condition.onset[x], where it is a year or a month alone"),
        ("abated", "dateTime", "Condition.abatement[x]"),
        ("abated_until", "dateTime", "Last moment of Condition.abatement[x], where it is a year or a month alone"),
        ("recorded", "dateTime", "Condition.recordedDate"),
        ("recorded_until", "dateTime", "Last moment of Condition.recordedDate, where it is a year or a month alone"),
        ("system", "string", "System of Condition.code, usually SNOMED CT"),
        ("code", "string", "Condition.code"),
    ),
    "MedicationRequest": (
        *_KEYS,
        ("encounter", "string", "Pseudonym of the encounter it belongs to"),
        ("medication", "string", "Pseudonym of the medication it refers to"),
        ("status", "string", "MedicationRequest.status"),
        ("intent", "string", "MedicationRequest.intent"),
        ("prohibited", "boolean", "MedicationRequest.doNotPerform"),
        ("authored", "dateTime", "MedicationRequest.authoredOn"),
        (
            "authored_until",
            "dateTime",
            "Last moment of MedicationRequest.authoredOn, where it is a year or a month alone",
        ),
        ("system", "string", "System of the medication's code, usually ATC"),
        ("code", "string", "MedicationRequest.medicationCodeableConcept, or the code of the Medication referred to"),
    ),
    "Encounter": (
        *_KEYS,
        ("status", "string", "Encounter.status"),
        ("class_system", "string", "System of Encounter.class, where one is given"),
        ("class_code", "string", "Encounter.class"),
        ("started", "dateTime", "Encounter.period.start"),
        ("started_until", "dateTime", "Last moment of Encounter.period.start, where it is a year or a month alone"),
        ("ended", "dateTime", "Encounter.period.end"),
        ("ended_until", "dateTime", "Last moment of Encounter.period.end, where it is a year or a month alone"),
        ("type_system", "string", "System of Encounter.type"),
        ("type_code", "string", "Encounter.type"),
        ("reason_system", "string", "System of Encounter.reasonCode"),
        ("reason_code", "string", "Encounter.reasonCode"),
    ),
}
