"""The four hospitals of UCI Heart Disease (Janosi, Steinbrunn, Pfisterer, Detrano, 1988; CC BY 4.0) as FHIR R4.

``processed.*.data`` hold 14 columns. ``?`` is missing, and so are a cholesterol and a resting blood pressure of 0,
which no living patient has. A missing value has no resource. All examinations are dated 1988; the birth date is
chosen so that the age holds through that year and on the day after it.

    DIR/{cleveland,hungary,switzerland,va}/{Patient,Observation,Condition,Encounter}.ndjson
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from vht_federate.errors import InputError
from vht_federate.samples.charts import LOINC, SNOMED, Resource, coded, quantity
from vht_federate.samples.generator import GeneratedHospital, describe, prepare_folder, write_resources

__all__ = ["COLUMNS", "HOSPITALS", "Row", "import_folder", "read_back", "read_folder", "read_table"]

COLUMNS = (
    *("age", "sex", "cp", "trestbps", "chol", "fbs", "restecg"),
    *("thalach", "exang", "oldpeak", "slope", "ca", "thal", "num"),
)
HOSPITALS = {"cleveland": "cleveland", "hungary": "hungarian", "switzerland": "switzerland", "va": "va"}
LOCAL = "urn:vht:codes:angiography"
EXAMINED = "1988-06-15"
NEVER_ZERO = ("trestbps", "chol")
CORONARY_DISEASE = "53741008"

Row = dict[str, float | None]


@dataclass(frozen=True)
class _Measure:
    """How a column is written: ``write`` makes value[x], ``read`` turns it back."""

    system: str
    code: str
    title: str
    write: Callable[[float], dict[str, Any]]
    read: Callable[[Resource], float]


def _number(system: str, code: str, title: str, unit: str) -> _Measure:
    return _Measure(
        system, code, title, lambda x: {"valueQuantity": quantity(x, unit)}, lambda r: r["valueQuantity"]["value"]
    )


def _boolean(code: str, title: str) -> _Measure:
    return _Measure(LOCAL, code, title, lambda x: {"valueBoolean": x == 1}, lambda r: float(r["valueBoolean"]))


def _choice(code: str, title: str, system: str, choices: dict[float, tuple[str, str]]) -> _Measure:
    back = {spelled: value for value, (spelled, _) in choices.items()}
    return _Measure(
        LOCAL,
        code,
        title,
        lambda x: {"valueCodeableConcept": coded(system, *choices[x])},
        lambda r: back[r["valueCodeableConcept"]["coding"][0]["code"]],
    )


_PAINS = {
    1.0: ("429559004", "Typical angina"),
    2.0: ("371807002", "Atypical angina"),
    3.0: ("274668005", "Non-cardiac chest pain"),
    4.0: ("161971004", "No chest pain"),
}
_ECGS = {
    0.0: ("normal", "Normal"),
    1.0: ("st-t-abnormality", "ST-T wave abnormality"),
    2.0: ("left-ventricular-hypertrophy", "Probable or definite left ventricular hypertrophy"),
}
_SLOPES = {1.0: ("upsloping", "Upsloping"), 2.0: ("flat", "Flat"), 3.0: ("downsloping", "Downsloping")}
_THALLIUM = {
    3.0: ("normal", "Normal"),
    6.0: ("fixed-defect", "Fixed defect"),
    7.0: ("reversible-defect", "Reversible defect"),
}
_MEASURES: dict[str, _Measure] = {
    "cp": _choice("chest-pain", "Type of chest pain", SNOMED, _PAINS),
    "trestbps": _number(LOINC, "8480-6", "Systolic blood pressure at rest", "mm[Hg]"),
    "chol": _number(LOINC, "2093-3", "Cholesterol in serum", "mg/dL"),
    "fbs": _boolean("fasting-glucose-above-120", "Fasting glucose above 120 mg/dL"),
    "restecg": _choice("resting-ecg", "Resting electrocardiogram", LOCAL, _ECGS),
    "thalach": _number(LOCAL, "maximum-heart-rate", "Maximum heart rate at exercise", "/min"),
    "exang": _boolean("exercise-angina", "Angina induced by exercise"),
    "oldpeak": _number(SNOMED, "26141007", "ST depression induced by exercise", "mm"),
    "slope": _choice("st-slope", "Slope of the peak exercise ST segment", LOCAL, _SLOPES),
    "ca": _number(LOCAL, "major-vessels", "Major vessels coloured by fluoroscopy", "{vessels}"),
    "thal": _choice("thallium", "Thallium stress result", LOCAL, _THALLIUM),
    "num": _Measure(
        LOCAL,
        "angiographic-status",
        "Angiographic disease status",
        lambda x: {"valueInteger": int(x)},
        lambda r: float(r["valueInteger"]),
    ),
}
_BY_CODE = {(measure.system, measure.code): (name, measure) for name, measure in _MEASURES.items()}


def read_table(path: Path) -> list[Row]:
    """Rows of one ``processed.*.data`` file, None where missing. Raises InputError VHT-INPUT-UCI naming the line."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path.name}", code="VHT-INPUT-UCI") from error
    return [_row(cells.split(","), path, number) for number, cells in enumerate(lines, 1) if cells.strip()]


def _row(cells: list[str], path: Path, number: int) -> Row:
    try:
        row: Row = {
            name: None if cell.strip() == "?" else float(cell) for name, cell in zip(COLUMNS, cells, strict=True)
        }
    except ValueError as error:
        raise InputError(f"{path.name} line {number} is not 14 numbers", code="VHT-INPUT-UCI") from error
    for name in NEVER_ZERO:
        row[name] = row[name] or None
    if row["age"] is None or row["sex"] is None or row["num"] is None:
        raise InputError(f"{path.name} line {number} lacks age, sex or outcome", code="VHT-INPUT-UCI")
    return row


def read_folder(folder: Path) -> dict[str, list[Row]]:
    """The four tables by hospital. Raises InputError VHT-INPUT-UCI."""
    return {name: read_table(folder / f"processed.{stem}.data") for name, stem in HOSPITALS.items()}


def import_folder(folder: Path, out: Path) -> list[GeneratedHospital]:
    """Write the four hospitals under ``out``. Raises InputError VHT-INPUT-UCI or VHT-INPUT-SAMPLES."""
    tables = read_folder(folder)
    prepare_folder(out)
    hospitals = [_write(out, name, rows) for name, rows in tables.items()]
    describe(out, "uci-heart-disease", {"licence": "CC BY 4.0"}, hospitals)
    return hospitals


def _write(out: Path, name: str, rows: list[Row]) -> GeneratedHospital:
    def resources() -> Iterator[Resource]:
        for number, row in enumerate(rows, 1):
            yield from _resources(f"{name}-{number:03d}", row)

    return GeneratedHospital(name, "cardiology", len(rows), write_resources(out / name, resources()))


def _resources(patient: str, row: Row) -> Iterator[Resource]:
    age, subject = int(row["age"] or 0), {"reference": f"Patient/{patient}"}
    gender = "male" if row["sex"] == 1 else "female"
    yield {"resourceType": "Patient", "id": patient, "gender": gender, "birthDate": f"{1988 - age}-01-15"}
    yield {
        "resourceType": "Encounter",
        "id": f"{patient}-visit",
        "status": "finished",
        "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB"},
        "subject": subject,
        "period": {"start": EXAMINED, "end": EXAMINED},
    }
    for name, measure in _MEASURES.items():
        value = row[name]
        if value is not None:
            yield {
                "resourceType": "Observation",
                "id": f"{patient}-{name}",
                "status": "final",
                "code": coded(measure.system, measure.code, measure.title),
                "subject": subject,
                "effectiveDateTime": EXAMINED,
                **measure.write(value),
            }
    if row["num"]:
        yield {
            "resourceType": "Condition",
            "id": f"{patient}-disease",
            "code": coded(SNOMED, CORONARY_DISEASE, "Coronary artery disease"),
            "subject": subject,
            "onsetDateTime": EXAMINED,
        }


def read_back(folder: Path) -> list[Row]:
    """The table of one imported hospital, from its FHIR resources alone, in the order of its patients."""
    rows: dict[str, Row] = {}
    for patient in _read(folder / "Patient.ndjson"):
        age, male = 1988 - int(patient["birthDate"][:4]), patient["gender"] == "male"
        rows[patient["id"]] = dict.fromkeys(COLUMNS) | {"age": float(age), "sex": float(male)}
    for observation in _read(folder / "Observation.ndjson"):
        coding = observation["code"]["coding"][0]
        name, measure = _BY_CODE[coding["system"], coding["code"]]
        rows[observation["subject"]["reference"].removeprefix("Patient/")][name] = measure.read(observation)
    return list(rows.values())


def _read(path: Path) -> Iterator[Resource]:
    with path.open("rb") as lines:
        yield from map(orjson.loads, lines)
