"""The component for one's own export: what counts as an input is recorded before the diagnosis, never on its day."""

import json
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from typer.testing import CliRunner

from connector.fhir import ingest
from connector.views import CohortSpecification, build_cohort
from vht_federate.cli import app
from vht_federate.components.digest import ComponentFiles
from vht_federate.components.loader import build_model
from vht_federate.components.registry import find_component

INSTALLED = find_component("hypertension-risk")
COMPONENT, PROFILE = INSTALLED.component, "before-onset"
INPUTS = COMPONENT.profile(PROFILE).inputs
ONSET = date(2015, 6, 1)


def reading(patient: str, day: date, systolic: float, name: str) -> dict[str, Any]:
    """A blood pressure panel, as servers have it."""
    parts = (("8480-6", systolic), ("8462-4", systolic - 45))
    loinc = "http://loinc.org"
    return {
        "resourceType": "Observation",
        "id": f"{patient}-{name}",
        "status": "final",
        "code": {"coding": [{"system": loinc, "code": "85354-9"}]},
        "subject": {"reference": f"urn:uuid:{patient}"},
        "effectiveDateTime": f"{day.isoformat()}T08:00:00+00:00",
        "component": [
            {
                "code": {"coding": [{"system": loinc, "code": code}]},
                "valueQuantity": {"value": value, "system": "http://unitsofmeasure.org", "code": "mm[Hg]"},
            }
            for code, value in parts
        ],
    }


def diagnosis(patient: str, day: date, code: str = "59621000") -> dict[str, Any]:
    return {
        "resourceType": "Condition",
        "id": f"{patient}-{code}",
        "code": {"coding": [{"system": "http://snomed.info/sct", "code": code}]},
        "subject": {"reference": f"urn:uuid:{patient}"},
        "onsetDateTime": f"{day.isoformat()}T08:00:00+00:00",
    }


def person(patient: str, born: str = "1960-01-01") -> dict[str, Any]:
    return {"resourceType": "Patient", "id": patient, "gender": "male", "birthDate": born}


def cohort(resources: list[dict[str, Any]], place: Path) -> dict[str, dict[str, float]]:
    """Record by systolic pressure before the index day, which each test makes unique: input -> value, and outcome."""
    folder = place / "fhir"
    folder.mkdir()
    (folder / "all.ndjson").write_text("".join(f"{json.dumps(resource)}\n" for resource in resources))
    ingest(folder, place / "store", node_key=b"h" * 32, dataset="own")
    specification = CohortSpecification.of_every_column(COMPONENT, PROFILE)
    build_cohort(place / "store", specification, place / "visit" / "cohort")
    tensors = load_file(place / "visit" / "cohort" / "cohort.safetensors")
    rows = [dict(zip(INPUTS, map(float, row), strict=True)) for row in tensors["values"]]
    return {
        f"{row['systolic_bp']:g}": row | {"outcome": float(outcome)}
        for row, outcome in zip(rows, tensors["outcome"], strict=True)
    }


@pytest.mark.parametrize("code", ["38341003", "59621000"])
def test_a_case_is_seen_before_its_first_diagnosis_and_not_on_that_day(tmp_path: Path, code: str) -> None:
    records = cohort(
        [
            person("a"),
            reading("a", ONSET - timedelta(days=400), 131, "earlier"),
            reading("a", ONSET - timedelta(days=1), 132, "day-before"),
            reading("a", ONSET, 177, "that-day"),
            reading("a", ONSET + timedelta(days=30), 150, "later"),
            diagnosis("a", ONSET, code),
        ],
        tmp_path,
    )
    assert set(records) == {"132"}
    assert (records["132"]["outcome"], records["132"]["age"], records["132"]["diastolic_bp"]) == (1, 55, 87)


def test_a_control_is_seen_before_the_last_recorded_day(tmp_path: Path) -> None:
    records = cohort(
        [person("b"), reading("b", date(2018, 1, 1), 121, "first"), reading("b", date(2019, 1, 1), 122, "last")],
        tmp_path,
    )
    assert {name: row["outcome"] for name, row in records.items()} == {"121": 0}


def test_who_was_not_measured_before_has_no_record(tmp_path: Path) -> None:
    resources = [
        *(person("c"), diagnosis("c", ONSET), reading("c", ONSET, 160, "that-day")),
        *(person("d"), reading("d", ONSET, 120, "only")),
        *(
            person("child", "2010-01-01"),
            reading("child", ONSET, 100, "x"),
            reading("child", date(2020, 1, 1), 101, "y"),
        ),
        *(person("e"), reading("e", ONSET, 118, "x"), reading("e", date(2020, 1, 1), 119, "y")),
    ]
    assert set(cohort(resources, tmp_path)) == {"118"}


def test_its_model_is_the_shared_one_and_starts_at_zero() -> None:
    files = ComponentFiles.read(INSTALLED.folder)
    assert (
        files.files["generalised_linear.py"]
        == ComponentFiles.read(find_component("cardio-risk").folder).files["generalised_linear.py"]
    )
    model = build_model(files, PROFILE)
    values = torch.tensor(np.full((3, len(INPUTS)), np.nan), dtype=torch.float32)
    assert model(values).tolist() == [0.0, 0.0, 0.0]


def test_show_says_what_it_reads_and_on_which_day() -> None:
    result = CliRunner().invoke(app, ["component", "show", "hypertension-risk"], env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for word in ("before-onset", "systolic_bp", "mm[Hg]", "first onset", "hypertension"):
        assert word in result.stdout


def test_the_card_names_what_the_model_cannot_claim() -> None:
    card = ComponentFiles.read(INSTALLED.folder).files["card.md"].decode()
    for word in ("no absolute risk", "Age may do all the work", "number of measurements", "Synthetic exports"):
        assert word in card
