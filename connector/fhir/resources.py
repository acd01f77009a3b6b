"""What the node keeps of each resource: an allow-list of elements, and nothing else passes the door.

No name, address, identifier, narrative, note or display is read. A resource with any ``modifierExtension`` (at any
depth) or an ``implicitRules`` means something that we do not know: it is quarantined (FHIR R4, 2.5.4 and 2.27.1.0.1).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from itertools import zip_longest
from typing import Any

from connector.fhir.condition_status import condition_status
from connector.fhir.dates_and_times import Bounds, birth_date, instant, moment, period_start
from connector.fhir.medications import MISTAKEN, contained_medication, medication_codings, medication_status
from connector.fhir.observation_values import Units, Value, Verdict, read_value
from connector.fhir.patient_links import Link, read_links
from connector.fhir.typed_elements import (
    Coding,
    Node,
    Quarantine,
    boolean,
    code,
    codings,
    encounter,
    identifier,
    member,
    members,
    subject,
    text,
)
from vht_federate.domain.references import medication_id_of
from vht_federate.domain.split import bucket_of

__all__ = [
    "KEPT",
    "MEDICATION",
    "MEDICATION_COLUMNS",
    "TABLES",
    "Reading",
    "Version",
    "kept_type",
    "read_resource",
    "read_version",
    "refuse_modifiers",
]

Row = tuple[Any, ...]
Version = tuple[datetime | None, int | None]
_NUMBER = re.compile("[0-9]{1,18}")
_NO_CODE: list[tuple[str | None, str | None]] = [(None, None)]
_NO_VALUE: list[Row] = [(None, None, None, None, None)]
_NEVER = (None, None)

# Columns of each row after (resource, subject), in order. ``encounter`` and ``medication`` are the keys of what is
# referred to. A coded list has a row for each coding. A moment and its ``_until`` are the bounds of a dateTime
# (``dates_and_times``); the latter is NULL where it is exact.
TABLES: dict[str, tuple[tuple[str, str], ...]] = {
    "Patient": (
        ("bucket", "uint8"),
        ("birth_date", "date32"),
        ("gender", "string"),
        ("active", "bool"),
        ("deceased", "bool"),
        ("deceased_at", "timestamp"),
        ("deceased_at_until", "timestamp"),
        ("birth_date_partial", "bool"),
    ),
    "Observation": (
        ("encounter", "string"),
        ("status", "string"),
        ("effective", "timestamp"),
        ("effective_until", "timestamp"),
        ("part", "int16"),
        ("code_system", "string"),
        ("code", "string"),
        ("number", "float64"),
        ("unit", "string"),
        ("truth", "bool"),
        ("value_system", "string"),
        ("value_code", "string"),
    ),
    "Condition": (
        ("encounter", "string"),
        ("verification", "string"),
        ("clinical", "string"),
        ("onset", "timestamp"),
        ("onset_until", "timestamp"),
        ("abated", "timestamp"),
        ("abated_until", "timestamp"),
        ("recorded", "timestamp"),
        ("recorded_until", "timestamp"),
        ("system", "string"),
        ("code", "string"),
    ),
    "MedicationRequest": (
        ("encounter", "string"),
        ("medication", "string"),
        ("status", "string"),
        ("intent", "string"),
        ("prohibited", "bool"),
        ("authored", "timestamp"),
        ("authored_until", "timestamp"),
        ("system", "string"),
        ("code", "string"),
    ),
    "Encounter": (
        ("status", "string"),
        ("class_system", "string"),
        ("class_code", "string"),
        ("started", "timestamp"),
        ("started_until", "timestamp"),
        ("ended", "timestamp"),
        ("ended_until", "timestamp"),
        ("type_system", "string"),
        ("type_code", "string"),
        ("reason_system", "string"),
        ("reason_code", "string"),
    ),
}

# Of no patient, and kept because prescriptions refer to it: its columns after (resource).
MEDICATION = "Medication"
MEDICATION_COLUMNS = (("system", "string"), ("code", "string"))
KEPT = (*TABLES, MEDICATION)

GENDERS = frozenset({"male", "female", "other", "unknown"})
OBSERVATION_STATUS = frozenset(
    {"registered", "preliminary", "final", "amended", "corrected", "cancelled", "entered-in-error", "unknown"}
)
REQUEST_STATUS = frozenset(
    {"active", "on-hold", "cancelled", "completed", "entered-in-error", "stopped", "draft", "unknown"}
)
REQUEST_INTENT = frozenset(
    {"proposal", "plan", "order", "original-order", "reflex-order", "filler-order", "instance-order", "option"}
)
ENCOUNTER_STATUS = frozenset(
    {
        "planned",
        "arrived",
        "triaged",
        "in-progress",
        "onleave",
        "finished",
        "cancelled",
        "entered-in-error",
        "unknown",
    }
)


@dataclass(frozen=True, slots=True)
class Reading:
    """One accepted resource: ``rows`` without their leading keys (resource and, where the table has them, subject,
    encounter, medication). ``medication_id`` names the Medication whose codes the rows lack."""

    type: str
    id: str
    patient_id: str | None
    rows: list[Row]
    verdict: Verdict = field(default_factory=Verdict)
    mistaken: bool = False  # entered in error
    encounter_id: str | None = None
    medication_id: str | None = None
    links: tuple[Link, ...] = ()  # of a Patient


def refuse_modifiers(resource: Node) -> None:
    """Raises Quarantine where any element carries a modifierExtension."""
    waiting: list[Any] = [resource]
    while waiting:
        node = waiting.pop()
        if type(node) is dict:
            if "modifierExtension" in node:
                raise Quarantine("modifier-extension", "modifierExtension")
            waiting.extend(node.values())
        elif type(node) is list:
            waiting.extend(node)


def kept_type(resource: Any) -> str:
    """The type of a resource that is kept. Raises Quarantine for other JSON, types and ``implicitRules``."""
    if type(resource) is not dict:
        raise Quarantine("not-an-object", "")
    kind = resource.get("resourceType")
    if type(kind) is not str:
        raise Quarantine("missing" if kind is None else "type", "resourceType")
    if kind not in _READERS:
        raise Quarantine("unsupported-type", "resourceType")
    if resource.get("implicitRules") is not None:
        raise Quarantine("implicit-rules", f"{kind}.implicitRules")
    return kind


def read_resource(resource: Any, units: Units) -> Reading:
    """Raises Quarantine with the reason and the path of the first element that does not fit."""
    return _READERS[kept_type(resource)](resource, units)


def read_version(resource: Node) -> Version:
    """``meta.lastUpdated`` and ``meta.versionId``, the latter where it is a number and so can be compared."""
    kind = resource["resourceType"]
    meta = member(resource, "meta", kind)
    if meta is None:
        return None, None
    version_id = text(meta, "versionId", f"{kind}.meta")
    number = int(version_id) if version_id and _NUMBER.fullmatch(version_id) else None
    return instant(meta, "lastUpdated", f"{kind}.meta"), number


def _status(node: Node, where: str, allowed: frozenset[str], key: str = "status") -> str:
    value = code(node, key, where, required=True)
    if value is None or value not in allowed:
        raise Quarantine("code", f"{where}.{key}")
    return value


def _patient(node: Node, _units: Units) -> Reading:
    patient_id = identifier(node, "Patient")
    gender = code(node, "gender", "Patient")
    if gender is not None and gender not in GENDERS:
        raise Quarantine("code", "Patient.gender")
    deceased_at = moment(node, "deceasedDateTime", "Patient")
    deceased = boolean(node, "deceasedBoolean", "Patient")
    links, in_use = read_links(node, patient_id)
    active = boolean(node, "active", "Patient") is not False and in_use
    born, partial = birth_date(node, "birthDate", "Patient")
    dead = bool(deceased) or deceased_at is not None
    row = (bucket_of(patient_id), born, gender, active, dead, *(deceased_at or _NEVER), partial)
    return Reading("Patient", patient_id, patient_id, [row], links=links)


def _observation(node: Node, units: Units) -> Reading:
    resource_id, patient = identifier(node, "Observation"), subject(node, "Observation", required=False)
    status = _status(node, "Observation", OBSERVATION_STATUS)
    effective = _when(node, "effective", "Observation")
    if effective is None:
        raise Quarantine("no-time", "Observation.effective[x]")
    verdict = Verdict()
    rows: list[Row] = []
    places = [(node, "Observation")]
    places += [(part, "Observation.component") for part in members(node, "component", "Observation")]
    for part, (place, where) in enumerate(places):
        meanings = codings(member(place, "code", where), f"{where}.code")
        value = read_value(place, where, meanings, units, verdict)
        # of a panel, or of a value set aside, it is kept that it was observed
        cells = _cells(value) if value else _NO_VALUE if meanings else []
        rows += [(status, *effective, part, *meaning, *cell) for meaning in meanings or _NO_CODE for cell in cells]
    return Reading(
        "Observation", resource_id, patient, rows, verdict, status == MISTAKEN, encounter(node, "Observation")
    )


def _cells(value: Value) -> list[Row]:
    plain = (value.number, value.unit, value.truth)
    return [(*plain, *coding) for coding in value.codes] or [(*plain, None, None)]


def _condition(node: Node, _units: Units) -> Reading:
    resource_id, patient = identifier(node, "Condition"), subject(node, "Condition")
    recorded = moment(node, "recordedDate", "Condition")
    onset = _when(node, "onset", "Condition") or recorded
    if onset is None:
        raise Quarantine("no-time", "Condition.onset[x]")
    abated = _when(node, "abatement", "Condition")
    dates = (*onset, *(abated or _NEVER), *(recorded or _NEVER))
    verification, clinical = condition_status(node)
    concept_codings = codings(member(node, "code", "Condition"), "Condition.code")
    rows: list[Row] = [(verification, clinical, *dates, *coding) for coding in concept_codings]
    encounter_id = encounter(node, "Condition")
    return Reading(
        "Condition", resource_id, patient, rows, mistaken=verification == MISTAKEN, encounter_id=encounter_id
    )


def _medication_request(node: Node, _units: Units) -> Reading:
    kind = "MedicationRequest"
    resource_id, patient = identifier(node, kind), subject(node, kind)
    status = _status(node, kind, REQUEST_STATUS)
    intent = _status(node, kind, REQUEST_INTENT, "intent")
    prohibited = boolean(node, "doNotPerform", kind) or False
    authored = moment(node, "authoredOn", kind)
    if authored is None:
        raise Quarantine("no-time", f"{kind}.authoredOn")
    medication_id, medication = _medication_of(node, kind)
    rows: list[Row] = [(status, intent, prohibited, *authored, *coding) for coding in medication]
    return Reading(
        kind,
        resource_id,
        patient,
        rows,
        mistaken=status == MISTAKEN,
        encounter_id=encounter(node, kind),
        medication_id=medication_id,
    )


def _medication_of(node: Node, kind: str) -> tuple[str | None, Sequence[tuple[str | None, str | None]]]:
    """Medication.id and no code, where another resource has the codes; else None and the codes."""
    concept, reference = member(node, "medicationCodeableConcept", kind), member(node, "medicationReference", kind)
    where = f"{kind}.medicationReference"
    if reference is None:
        if concept is None:
            raise Quarantine("missing", f"{kind}.medication[x]")
        return None, codings(concept, f"{kind}.medicationCodeableConcept")
    if concept is not None:
        raise Quarantine("choice", f"{kind}.medication[x]")
    target = text(reference, "reference", where) or ""
    contained = contained_medication(node, target, kind) if target.startswith("#") else None
    if contained is not None:
        return None, medication_codings(contained)
    medication_id = medication_id_of(target)
    if medication_id is None:
        raise Quarantine("unresolved", where)
    return medication_id, _NO_CODE


def _medication(node: Node, _units: Units) -> Reading:
    medication_id, mistaken = identifier(node, MEDICATION), medication_status(node) == MISTAKEN
    return Reading(MEDICATION, medication_id, None, [*(medication_codings(node) or _NO_CODE)], mistaken=mistaken)


def _encounter(node: Node, _units: Units) -> Reading:
    resource_id, patient = identifier(node, "Encounter"), subject(node, "Encounter", required=False)
    status = _status(node, "Encounter", ENCOUNTER_STATUS)
    encounter_class = member(node, "class", "Encounter") or {}
    period = member(node, "period", "Encounter") or {}
    started, ended = (moment(period, key, "Encounter.period") for key in ("start", "end"))
    class_coding = (code(encounter_class, key, "Encounter.class") for key in ("system", "code"))
    lead = (status, *class_coding, *(started or _NEVER), *(ended or _NEVER))
    types, reasons = (_each_of(node, key, "Encounter") for key in ("type", "reasonCode"))
    rows = [(*lead, *pair[0], *pair[1]) for pair in zip_longest(types, reasons, fillvalue=_NO_CODE[0])]
    return Reading("Encounter", resource_id, patient, rows or [(*lead, *_NO_CODE[0] * 2)], mistaken=status == MISTAKEN)


def _each_of(node: Node, key: str, where: str) -> list[Coding]:
    """Each coding of a list of CodeableConcepts, once."""
    concepts = members(node, key, where)
    return list(dict.fromkeys(coding for concept in concepts for coding in codings(concept, f"{where}.{key}")))


def _when(node: Node, stem: str, where: str) -> Bounds | None:
    """The moment of effective[x], onset[x] or abatement[x]: dateTime, instant, or the start of a period."""
    period = member(node, f"{stem}Period", where)
    at = instant(node, f"{stem}Instant", where)
    return (
        moment(node, f"{stem}DateTime", where)
        or ((at, None) if at else None)
        or period_start(period, f"{where}.{stem}Period")
    )


_READERS: dict[str, Callable[[Node, Units], Reading]] = {
    "Patient": _patient,
    "Observation": _observation,
    "Condition": _condition,
    "MedicationRequest": _medication_request,
    "Encounter": _encounter,
    "Medication": _medication,
}
