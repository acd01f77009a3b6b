"""A synthetic cohort as FHIR R4 NDJSON, built from the component's ports so that any connector can read it back.

Every resource is marked in ``meta``: security label HTEST (test health data, HL7 ActReason) and our own tag. Ids are
row numbers. Times are public: inputs lie on the day before the last landmark, an outcome halfway to the horizon; of a
profile indexed by onset, inputs lie on the day before a fixed day, an outcome on it.
"""

import json
from collections.abc import Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from vht_federate.components.contract import Component, Port
from vht_federate.errors import CohortError
from vht_federate.packaging.cohort import FHIR_TYPES, PROVENANCE_TAG, TEST_DATA_TAG

__all__ = ["resources_of", "validate_sample", "write_ndjson"]

UCUM = "http://unitsofmeasure.org"
META = {"security": [TEST_DATA_TAG], "tag": [PROVENANCE_TAG]}
ONSET_DAY = date(2020, 1, 1)
ACTIVE = {
    "coding": [{"system": "http://terminology.hl7.org/CodeSystem/condition-clinical", "code": "active"}],
}
Resource = dict[str, Any]


def write_ndjson(folder: Path, component: Component, profile: str, table: pd.DataFrame) -> dict[str, int]:
    """Write ``folder``/TYPE.ndjson for each type that occurs; lines by type."""
    folder.mkdir(parents=True, exist_ok=True)
    files: dict[str, TextIO] = {}
    counts = dict.fromkeys(FHIR_TYPES, 0)
    try:
        for resource in resources_of(component, profile, table):
            kind = resource["resourceType"]
            if kind not in files:
                files[kind] = (folder / f"{kind}.ndjson").open("w", encoding="utf-8")
            files[kind].write(json.dumps(resource, separators=(",", ":"), ensure_ascii=False, allow_nan=False) + "\n")
            counts[kind] += 1
    finally:
        for file in files.values():
            file.close()
    return {kind: count for kind, count in counts.items() if count}


def resources_of(component: Component, profile: str, table: pd.DataFrame) -> Iterator[Resource]:
    """Resources of all rows, patient by patient."""
    chosen = component.profile(profile)
    landmark = chosen.landmarks[-1] if chosen.landmarks else ONSET_DAY
    ports = [*component.inputs(profile), component.outcome(profile)]
    columns = {port.name: table[port.name].tolist() for port in ports}
    for row in range(len(table)):
        values = {name: None if pd.isna(cells[row]) else cells[row] for name, cells in columns.items()}
        yield _patient(row, ports, values, landmark)
        for port in ports:
            if values[port.name] is None or port.source.type in ("age", "sex"):
                continue
            moment = landmark - timedelta(days=1)
            if port.direction == "outcome":
                moment = landmark + timedelta(days=int(chosen.horizon_years * 365.25 / 2))
            resource = _resource(port, values[port.name], moment)
            if resource is not None:
                head = {"resourceType": resource.pop("resourceType"), "id": f"synthetic-{row + 1}-{_slug(port.name)}"}
                yield {**head, "meta": META, "subject": {"reference": f"Patient/synthetic-{row + 1}"}, **resource}


def validate_sample(folder: Path, rows: int) -> int:
    """Validate the resources of the first ``rows`` lines of each file with fhir.resources; how many were.

    0 where fhir.resources is not installed. Raises CohortError VHT-COHORT-FHIR naming file and line.
    """
    try:
        from fhir.resources.R4B import get_fhir_model_class
    except ImportError:
        return 0
    checked = 0
    for path in sorted(folder.glob("*.ndjson")):
        model = get_fhir_model_class(path.stem)
        with path.open(encoding="utf-8") as file:
            for number, line in zip(range(1, rows + 1), file, strict=False):
                try:
                    model.model_validate_json(line)
                except ValueError as error:
                    raise CohortError(f"{path.name} line {number} is not FHIR", code="VHT-COHORT-FHIR") from error
                checked += 1
    return checked


def _patient(row: int, ports: list[Port], values: dict[str, Any], landmark: date) -> Resource:
    patient: Resource = {"resourceType": "Patient", "id": f"synthetic-{row + 1}", "meta": META, "active": True}
    for port in ports:
        value = values[port.name]
        if port.source.type == "sex" and value is not None:
            patient["gender"] = port.source.equals if value else _other_than(port.source.equals)
        if port.source.type == "age" and value is not None:
            patient["birthDate"] = date(landmark.year - int(value), 1, 1).isoformat()
    return patient


def _other_than(gender: str) -> str:
    return "female" if gender == "male" else "male" if gender == "female" else "unknown"


def _resource(port: Port, value: Any, moment: date) -> Resource | None:
    """The resource of one value, without id and subject; None where absence says it."""
    source = port.source
    if source.type in ("condition", "medication"):
        if not value:
            return None
        concept = {"coding": [{"system": source.system, "code": source.codes[0]}], "text": port.title}
        if source.type == "condition":
            onset = moment.isoformat()
            return {"resourceType": "Condition", "clinicalStatus": ACTIVE, "code": concept, "onsetDateTime": onset}
        return {
            "resourceType": "MedicationRequest",
            "status": "active",
            "intent": "order",
            "medicationCodeableConcept": concept,
            "authoredOn": moment.isoformat(),
        }
    return {
        "resourceType": "Observation",
        "status": "final",
        "code": {"coding": [{"system": source.code_system, "code": source.codes[0]}], "text": port.title},
        "effectiveDateTime": moment.isoformat(),
        **_value(port, value),
    }


def _value(port: Port, value: Any) -> Resource:
    source = port.source
    if source.type == "observation":
        number = int(value) if float(value).is_integer() else float(value)
        return {"valueQuantity": {"value": number, "unit": port.unit, "system": UCUM, "code": port.unit}}
    if source.type == "observation-boolean":
        return {"valueBoolean": bool(value)}
    code = value
    if port.kind == "boolean":
        code = (source.values if value else source.negatives)[0]
    return {"valueCodeableConcept": {"coding": [{"system": source.system, "code": code}]}}


def _slug(name: str) -> str:
    """A FHIR id allows letters, digits, dots and dashes."""
    return name.replace("_", "-")
