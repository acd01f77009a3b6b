"""The four real hospitals: out as FHIR and back without a change."""

import os
from pathlib import Path

import pytest
from kit.places import ROOT, SHARED

from connector.fhir import Store, ingest
from connector.views import CohortSpecification, build_cohort
from vht_federate.components.contract import read_component
from vht_federate.errors import InputError
from vht_federate.samples import uci

FILES = SHARED / "data" / "uci-heart"
COMPONENT = ROOT / "vht_federate" / "components" / "cardio_risk"
ROWS = {"cleveland": 303, "hungary": 294, "switzerland": 123, "va": 200}


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not FILES.is_dir():
        assert os.environ.get("CI") != "true", "the UCI files are missing beside the checkout"
        pytest.skip("the UCI files are not beside this checkout")
    out = tmp_path_factory.mktemp("uci") / "fhir"
    uci.import_folder(FILES, out)
    return out


def raw(name: str) -> list[list[str]]:
    lines = (FILES / f"processed.{uci.HOSPITALS[name]}.data").read_text().split()
    return [line.split(",") for line in lines]


@pytest.mark.parametrize("name", ROWS)
def test_the_table_returns_from_fhir_with_what_was_missing_still_missing(imported: Path, name: str) -> None:
    back = uci.read_back(imported / name)
    assert len(back) == ROWS[name]
    for cells, row in zip(raw(name), back, strict=True):
        for column, cell in zip(uci.COLUMNS, cells, strict=True):
            gone = cell == "?" or (column in ("chol", "trestbps") and float(cell) == 0)
            assert row[column] == (None if gone else float(cell))


def test_every_line_is_accepted_and_every_value_too(imported: Path, tmp_path: Path) -> None:
    for name, rows in ROWS.items():
        report = ingest(imported / name, tmp_path / name, node_key=b"u" * 32, dataset=name)
        assert (report.lines, report.values_quarantined, report.patients) == (report.accepted, 0, rows)


@pytest.mark.parametrize("name", ROWS)
def test_the_cohort_holds_the_table(imported: Path, tmp_path: Path, name: str) -> None:
    from safetensors.numpy import load_file

    component = read_component(COMPONENT)
    ingest(imported / name, tmp_path / "store", node_key=b"u" * 32, dataset=name)
    specification = CohortSpecification.of_every_column(component, "angiography")
    manifest = build_cohort(tmp_path / "store", specification, tmp_path / "visit" / "cohort")
    tensors = load_file(tmp_path / "visit" / "cohort" / "cohort.safetensors")
    assert manifest.patients == manifest.records == ROWS[name]
    choices = {"cp": (1, 2, 3, 4), "restecg": (0, 1, 2), "slope": (1, 2, 3), "thal": (3, 6, 7)}
    expected = []
    for row in uci.read_back(imported / name):
        cells = []
        for column in uci.COLUMNS[:-1]:
            value = row[column]
            encoded = choices[column].index(int(value)) if column in choices and value is not None else value
            cells.append(-99.0 if encoded is None else round(float(encoded), 3))
        expected.append((*cells, float((row["num"] or 0) > 0)))
    records = [
        (*(-99.0 if value != value else round(float(value), 3) for value in values), float(outcome))
        for values, outcome in zip(tensors["values"], tensors["outcome"], strict=True)
    ]
    assert sorted(records) == sorted(expected)


def test_the_resources_are_valid_r4(imported: Path) -> None:
    import json

    from fhir.resources.R4B import get_fhir_model_class

    lines = [line for path in imported.glob("switzerland/*.ndjson") for line in path.read_text().splitlines()]
    assert len(lines) > 1000
    for line in lines:
        resource = json.loads(line)
        get_fhir_model_class(resource["resourceType"]).model_validate(resource)


def test_a_line_that_is_not_14_numbers_is_named(tmp_path: Path) -> None:
    (tmp_path / "processed.cleveland.data").write_text("63,1,1,145,233,1,2,150,0,2.3,3,0,6,0\n63,1,x\n")
    with pytest.raises(InputError, match="line 2"):
        uci.read_table(tmp_path / "processed.cleveland.data")


def test_missing_files_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="processed"):
        uci.import_folder(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_store_keeps_no_patient_id(imported: Path, tmp_path: Path) -> None:
    ingest(imported / "va", tmp_path / "store", node_key=b"u" * 32, dataset="va")
    generation = Store(tmp_path / "store").current()
    assert generation is not None
    assert all(b"va-00" not in path.read_bytes() for path in generation.folder.iterdir())
