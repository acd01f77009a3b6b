"""Generated cohorts: reproducible, valid FHIR, as unlike each other as hospitals are."""

import csv
import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from vht_federate.errors import InputError
from vht_federate.samples.cli import app
from vht_federate.samples.equation import truth
from vht_federate.samples.generator import RESOURCE_TYPES, generate
from vht_federate.samples.hospitals import hospital_sizes


def digests(folder: Path) -> dict[str, str]:
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def resources(folder: Path, kind: str) -> list[dict]:
    return [
        json.loads(line) for path in sorted(folder.glob(f"*/{kind}.ndjson")) for line in path.read_text().splitlines()
    ]


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cohort") / "data"
    generate(folder, hospitals=4, patients=200, seed=3)
    return folder


def test_the_same_arguments_write_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        generate(tmp_path / name, hospitals=2, patients=20, seed=5, canaries=tmp_path / f"{name}.txt")
    assert digests(tmp_path / "one") == digests(tmp_path / "two")
    assert (tmp_path / "one.txt").read_bytes() == (tmp_path / "two.txt").read_bytes()


def test_writing_over_a_dataset_of_ours_leaves_no_old_hospital(tmp_path: Path) -> None:
    generate(tmp_path / "again", hospitals=3, patients=10, seed=1)
    generate(tmp_path / "again", hospitals=2, patients=10, seed=2)
    generate(tmp_path / "fresh", hospitals=2, patients=10, seed=2)
    assert digests(tmp_path / "again") == digests(tmp_path / "fresh")


def test_another_seed_writes_other_patients(tmp_path: Path) -> None:
    for seed in (1, 2):
        generate(tmp_path / str(seed), hospitals=1, patients=10, seed=seed)
    assert digests(tmp_path / "1") != digests(tmp_path / "2")


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not empty"):
        generate(tmp_path, hospitals=1, patients=5, seed=1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_every_resource_is_valid_r4(tmp_path: Path) -> None:
    from fhir.resources.R4B import get_fhir_model_class

    generate(tmp_path / "d", hospitals=4, patients=4, seed=11, canaries=tmp_path / "c.txt")
    counts: Counter[str] = Counter()
    for kind in RESOURCE_TYPES:
        for resource in resources(tmp_path / "d", kind):
            get_fhir_model_class(kind).model_validate(resource)
            counts[kind] += 1
    assert set(counts) == set(RESOURCE_TYPES)


def test_ids_are_unique_and_references_resolve(cohort: Path) -> None:
    patients = {patient["id"] for patient in resources(cohort, "Patient")}
    assert len(patients) == 800
    for kind in RESOURCE_TYPES[1:]:
        entries = resources(cohort, kind)
        assert len({resource["id"] for resource in entries}) == len(entries)
        assert {resource["subject"]["reference"].removeprefix("Patient/") for resource in entries} <= patients


def test_volume_stays_moderate(cohort: Path) -> None:
    total = sum(len(resources(cohort, kind)) for kind in RESOURCE_TYPES)
    assert 20 <= total / 800 <= 60


def test_hospitals_differ_in_size_units_and_codes(cohort: Path) -> None:
    spelled = []
    for hospital in sorted(cohort.glob("hospital-*")):
        units: dict[str, set[str]] = {}
        for observation in map(json.loads, (hospital / "Observation.ndjson").read_text().splitlines()):
            if "valueQuantity" in observation:
                units.setdefault(observation["code"]["coding"][0]["code"], set()).add(
                    observation["valueQuantity"]["code"]
                )
        assert all(len(unit_codes) == 1 for unit_codes in units.values())
        spelled.append({code: unit_codes.pop() for code, unit_codes in units.items()})
    assert {units.get("2093-3") for units in spelled} == {"mg/dL", "mmol/L", None}
    assert {units.get("4548-4") for units in spelled} == {"%", "mmol/mol", None}
    assert any("14647-2" in units and "59261-8" in units for units in spelled)
    assert len(set(hospital_sizes(4, 200))) == 4


@pytest.mark.parametrize(("hospitals", "patients"), [(1, 1), (4, 1500), (7, 3), (5, 101)])
def test_sizes_add_up_to_the_average_asked_for(hospitals: int, patients: int) -> None:
    sizes = hospital_sizes(hospitals, patients)
    assert sum(sizes) == hospitals * patients
    assert min(sizes) >= 1


def test_the_truth_beside_the_data_explains_who_had_the_outcome(cohort: Path) -> None:
    assert json.loads((cohort / "truth" / "equation.json").read_text()) == json.loads(json.dumps(truth()))
    rows = list(csv.DictReader((cohort / "truth" / "patients.csv").read_text().splitlines()))
    assert len(rows) == 800
    expected = sum(float(row["risk_10y"]) for row in rows) / len(rows)
    observed = sum("" < row["event_date"] < "2020-01-01" for row in rows) / len(rows)
    assert 0.15 <= expected <= 0.25
    assert observed == pytest.approx(expected, abs=0.05)


def test_canaries_stand_in_every_place_that_identifies(tmp_path: Path) -> None:
    generate(tmp_path / "d", hospitals=2, patients=6, seed=4, canaries=tmp_path / "c.txt")
    planted = (tmp_path / "c.txt").read_text().splitlines()
    assert len(set(planted)) == len(planted)
    content = {kind: json.dumps(resources(tmp_path / "d", kind)) for kind in RESOURCE_TYPES}
    everything = "".join(content.values())
    assert all(text in everything for text in planted)
    for patient in resources(tmp_path / "d", "Patient"):
        for place in ("id", "text", "identifier", "name", "telecom", "address"):
            assert any(text in json.dumps(patient[place]) for text in planted)
    for encounter in resources(tmp_path / "d", "Encounter"):
        assert any(text in json.dumps(encounter["reasonCode"]) for text in planted)
    assert sum(text in content["Encounter"] for text in planted if text.startswith("20")) == 12


def test_the_command_prints_one_envelope(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from vht_federate import cli

    answer = CliRunner().invoke(
        cli.app, ["--json", "data", "generate", "--patients", "5", "--out", str(tmp_path / "d")]
    )
    envelope = json.loads(answer.stdout)
    assert (envelope["ok"], envelope["data"]["patients"], len(envelope["data"]["hospitals"])) == (True, 20, 4)
    refused = CliRunner().invoke(app, ["generate", "--hospitals", "0", "--out", str(tmp_path / "e")])
    assert refused.exit_code == 2
