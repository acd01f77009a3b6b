"""Cohorts: the tensors are what a slow, plain reading of the resources says; what is not permitted is not read."""

# ruff: noqa: S608 - statements that must fail

import json
import random
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit.fhir_resources import KEY, LOINC, SNOMED, condition, observation, patient, prescription, quantity, write
from kit.places import ROOT
from safetensors.numpy import load_file

from connector.duckdb_lockdown import locked
from connector.fhir import Store, ingest, subject_key
from connector.fhir.codes import Measure
from connector.views import CohortManifest, CohortSpecification, build_cohort
from vht_federate.components.contract import Component, Port, read_component
from vht_federate.domain.split import bucket_of
from vht_federate.errors import CohortError, InputError, ViewError
from vht_federate.samples.generator import RESOURCE_TYPES, generate

COMPONENT = read_component(ROOT / "vht_federate" / "components" / "cardio_risk")
PROFILE = "cardiometabolic"
COLUMNS = COMPONENT.columns(PROFILE)
PLACE = {name: index for index, name in enumerate(COMPONENT.profile(PROFILE).inputs)}


def build(
    store: Path, for_component: Component = COMPONENT, **more: Any
) -> tuple[CohortManifest, dict[str, np.ndarray]]:
    folder = store.parent / "visits" / "v1" / "cohort"
    call = {name: more.pop(name) for name in ("included", "reader") if name in more}
    specification = CohortSpecification(for_component, PROFILE, **{"columns": COLUMNS} | more)
    manifest = build_cohort(store, specification, folder, **call)
    return manifest, load_file(folder / "cohort.safetensors")


def cohort(tmp_path: Path, items: list[Any], **more: Any) -> tuple[CohortManifest, dict[str, np.ndarray]]:
    ingest(write(tmp_path / "in", "data.ndjson", items), tmp_path / "store", node_key=KEY, dataset="d")
    return build(tmp_path / "store", **more)


def column(tensors: dict[str, np.ndarray], name: str) -> list[float | None]:
    return [None if np.isnan(value) else round(float(value), 3) for value in tensors["values"][:, PLACE[name]]]


def when(text: str) -> datetime:
    if "T" in text:
        return datetime.fromisoformat(text).astimezone(UTC)
    return datetime.combine(date.fromisoformat(text), datetime.min.time(), UTC)


def readings(resources: list[dict[str, Any]]) -> list[tuple[datetime, dict[str, Any], dict[str, Any]]]:
    """(moment, code, element with the value) of each observation and component."""
    triples = []
    for resource in resources:
        for element in [resource, *resource.get("component", [])]:
            triples += [(when(resource["effectiveDateTime"]), c, element) for c in element["code"]["coding"]]
    return triples


def oracle_value(port: Port, chart: dict[str, list[dict[str, Any]]], landmark: date) -> float | None:
    source, moment = port.source, datetime.combine(landmark, datetime.min.time(), UTC)
    person = chart["Patient"][0]
    if source.type == "age":
        born = date.fromisoformat(person["birthDate"])
        return landmark.year - born.year - ((landmark.month, landmark.day) < (born.month, born.day))
    if source.type == "sex":
        return float(person["gender"] == source.equals)
    if source.type in ("condition", "medication"):
        kind, concept, dated = {
            "condition": ("Condition", "code", "onsetDateTime"),
            "medication": ("MedicationRequest", "medicationCodeableConcept", "authoredOn"),
        }[source.type]
        return float(
            any(
                coding["system"] == source.system and coding["code"] in source.codes and when(resource[dated]) < moment
                for resource in chart[kind]
                for coding in resource[concept]["coding"]
            )
        )
    known = [
        (at, element)
        for at, coding, element in readings(chart["Observation"])
        if coding["system"] == source.code_system and coding["code"] in source.codes and at < moment
    ]
    if not known:
        return None
    _, last = max(known, key=lambda pair: pair[0])
    if source.type == "observation":
        turn = Measure.of_port(port).turn(last["valueQuantity"]["code"])
        assert turn is not None
        return turn.way(last["valueQuantity"]["value"])
    code = last["valueCodeableConcept"]["coding"][0]["code"]
    return 1.0 if code in source.values else 0.0 if code in source.negatives else None


def oracle(folder: Path) -> dict[str, list[tuple[list[float | None], float]]]:
    """Subject key -> records, each (values, outcome), in the order of the landmarks."""
    charts: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for kind in RESOURCE_TYPES:
        for resource in map(json.loads, (folder / f"{kind}.ndjson").read_text().splitlines()):
            owner = resource["id"] if kind == "Patient" else resource["subject"]["reference"].split("/")[1]
            charts.setdefault(owner, {name: [] for name in RESOURCE_TYPES})[kind].append(resource)
    profile, codes = COMPONENT.profile(PROFILE), COMPONENT.outcome(PROFILE).source.codes
    records_by_subject = {}
    for owner, chart in charts.items():
        events = [when(c["onsetDateTime"]) for c in chart["Condition"] if c["code"]["coding"][0]["code"] in codes]
        died = chart["Patient"][0].get("deceasedDateTime")
        records = []
        for landmark in profile.landmarks:
            start = datetime.combine(landmark, datetime.min.time(), UTC)
            end = start.replace(year=start.year + profile.horizon_years)
            if any(event < start for event in events) or (died and when(died) < start):
                continue
            values = [oracle_value(port, chart, landmark) for port in COMPONENT.inputs(PROFILE)]
            records.append((values, float(any(event < end for event in events))))
        if records:
            records_by_subject[subject_key(KEY, owner)] = records
    return records_by_subject


@pytest.fixture(scope="module")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hospitals")
    generate(root / "in", hospitals=4, patients=60, seed=21)
    for name in ("hospital-1", "hospital-2", "hospital-3", "hospital-4"):
        ingest(root / "in" / name, root / name / "store", node_key=KEY, dataset=name)
    return root


@pytest.mark.parametrize("name", ["hospital-1", "hospital-2", "hospital-3", "hospital-4"])
def test_the_tensors_are_what_a_slow_reading_says(hospitals: Path, name: str) -> None:
    manifest, tensors = build(hospitals / name / "store")
    expected = oracle(hospitals / "in" / name)
    subjects = sorted(expected)
    assert manifest.patients == len(subjects)
    assert tensors["patient"].tolist() == [n for n, key in enumerate(subjects) for _ in expected[key]]
    rows = [record for key in subjects for record in expected[key]]
    assert tensors["outcome"].tolist() == [outcome for _, outcome in rows]
    expected_values = np.array([[np.nan if v is None else v for v in values] for values, _ in rows], dtype=np.float32)
    np.testing.assert_allclose(tensors["values"], expected_values, rtol=1e-6)
    assert np.isnan(expected_values).any(axis=0)[PLACE["hba1c"]]
    assert not np.isnan(expected_values).all(axis=0).any()


def test_buckets_are_those_of_the_public_split(hospitals: Path) -> None:
    _, tensors = build(hospitals / "hospital-1" / "store")
    ids = [json.loads(line)["id"] for line in (hospitals / "in/hospital-1/Patient.ndjson").read_text().splitlines()]
    buckets = {subject_key(KEY, ident): bucket_of(ident) for ident in ids}
    expected = [buckets[key] for key in sorted(oracle(hospitals / "in" / "hospital-1"))]
    assert tensors["bucket"].tolist() == expected
    assert tensors["bucket"].dtype == np.uint8


def test_the_same_store_gives_the_same_bytes(hospitals: Path) -> None:
    first, _ = build(hospitals / "hospital-2" / "store")
    second, _ = build(hospitals / "hospital-2" / "store")
    assert first == second


def test_the_order_of_lines_does_not_matter(hospitals: Path, tmp_path: Path) -> None:
    lines: list[bytes] = []
    for kind in RESOURCE_TYPES:
        lines += (hospitals / "in" / "hospital-3" / f"{kind}.ndjson").read_bytes().splitlines()
    random.Random(5).shuffle(lines)
    shuffled, _ = cohort(tmp_path, lines)
    ordered, _ = build(hospitals / "hospital-3" / "store")
    assert shuffled.sha256 == ordered.sha256


def test_a_value_on_the_day_of_the_landmark_is_too_late(tmp_path: Path) -> None:
    early = observation("a", effectiveDateTime="2009-12-31T23:59:59Z", valueQuantity=quantity(120, "mm[Hg]"))
    late = observation("b", effectiveDateTime="2010-01-01", valueQuantity=quantity(180, "mm[Hg]"))
    _, tensors = cohort(tmp_path, [patient(1), late, early])
    assert column(tensors, "systolic_bp") == [120.0, 180.0, 180.0]


@pytest.mark.parametrize("status", ["registered", "preliminary", "cancelled", "entered-in-error", "unknown"])
def test_an_observation_that_is_not_final_does_not_count(tmp_path: Path, status: str) -> None:
    _, tensors = cohort(tmp_path, [patient(1), observation("a", status=status)])
    assert column(tensors, "systolic_bp") == [None] * 3


def test_a_prior_outcome_ends_the_records(tmp_path: Path) -> None:
    people = [patient(n) for n in range(1, 6)]
    events = [
        condition("a", "22298006", "2009-12-31", 1),  # before the first landmark: no record
        condition("b", "230690007", "2010-01-01", 2),  # on it: counts there, ends the later ones
        condition("c", "22298006", "2020-06-01", 3),  # within ten years of 2011 and 2012 only
        condition("d", "22298006", "2022-01-01", 4),  # ten years after the last landmark: outside
        condition("e", "22298006", "2015-01-01", 5, verificationStatus={"coding": [{"code": "refuted"}]}),
    ]
    _, tensors = cohort(tmp_path, people + events)
    order = sorted(range(1, 6), key=lambda n: subject_key(KEY, f"p{n}"))
    outcomes: dict[int, list[float]] = {n: [] for n in range(1, 6)}
    present = [n for n in order if n != 1]
    for person, outcome in zip(tensors["patient"], tensors["outcome"], strict=True):
        outcomes[present[person]].append(float(outcome))
    assert outcomes == {1: [], 2: [1.0], 3: [0.0, 1.0, 1.0], 4: [0.0] * 3, 5: [0.0] * 3}


def test_the_dead_the_young_and_the_replaced_have_no_record(tmp_path: Path) -> None:
    items = [
        patient(1, deceasedDateTime="2010-06-01"),
        patient(2, birthDate="1992-07-01"),
        patient(3, active=False),
        patient(4, link=[{"type": "replaced-by", "other": {"reference": "Patient/p1"}}]),
        patient(5, deceasedBoolean=True),
    ]
    _, tensors = cohort(tmp_path, items)
    landmarks = sorted([(subject_key(KEY, "p1"), 1), (subject_key(KEY, "p2"), 2)])
    assert np.bincount(tensors["patient"]).tolist() == [count for _, count in landmarks]


def test_a_birthday_is_counted_to_the_day(tmp_path: Path) -> None:
    _, tensors = cohort(tmp_path, [patient(1, birthDate="1950-01-01")])
    assert column(tensors, "age") == [60.0, 61.0, 62.0]
    _, tensors = cohort(tmp_path / "b", [patient(1, birthDate="1950-01-02")])
    assert column(tensors, "age") == [59.0, 60.0, 61.0]


def test_an_unknown_sex_is_missing(tmp_path: Path) -> None:
    _, tensors = cohort(tmp_path, [patient(1, gender="other")])
    assert column(tensors, "male") == [None] * 3


@pytest.mark.parametrize(("code", "wanted"), [("77176002", 1.0), ("8517006", 0.0), ("999", None)])
def test_the_last_code_decides_about_smoking(tmp_path: Path, code: str, wanted: float | None) -> None:
    def status(ident: str, when: str, spelled: str) -> dict[str, Any]:
        return observation(
            ident,
            code={"coding": [{"system": LOINC, "code": "72166-2"}]},
            effectiveDateTime=when,
            valueQuantity=None,
            valueCodeableConcept={
                "coding": [{"system": "urn:local", "code": "x"}, {"system": SNOMED, "code": spelled}]
            },
        )

    older = status("a", "2008-01-01", "77176002" if wanted == 0.0 else "266919005")
    _, tensors = cohort(tmp_path, [patient(1), older, status("b", "2009-01-01", code)])
    assert column(tensors, "smoker") == [wanted] * 3


def test_conditions_and_medication_count_from_their_day(tmp_path: Path) -> None:
    items = [
        patient(1),
        condition("a", "44054006", "2010-05-01"),
        condition("b", "44054006", "2005-05-01", verificationStatus={"coding": [{"code": "entered-in-error"}]}),
        prescription("c", "C09AA05", "2011-05-01"),
        prescription("d", "C08CA01", "2005-05-01", doNotPerform=True),
        prescription("e", "C08CA01", "2005-05-01", intent="proposal"),
        prescription("f", "C08CA01", "2005-05-01", status="entered-in-error"),
        prescription("g", "A10BA02", "2005-05-01"),
    ]
    _, tensors = cohort(tmp_path, items)
    assert column(tensors, "diabetes") == [0.0, 1.0, 1.0]
    assert column(tensors, "antihypertensive") == [0.0, 0.0, 1.0]


def test_who_opted_out_is_not_there(tmp_path: Path) -> None:
    items = [patient(n) for n in range(1, 6)] + [observation(f"o{n}", n) for n in range(1, 6)]
    everyone, _ = cohort(tmp_path, items)
    opted_out = {subject_key(KEY, "p2"), subject_key(KEY, "p4")}
    manifest, tensors = build(tmp_path / "store", excluded_subjects=opted_out)
    assert (everyone.patients, manifest.patients, manifest.records) == (5, 3, 9)
    remaining = sorted(subject_key(KEY, f"p{n}") for n in (1, 3, 5))
    buckets = {subject_key(KEY, f"p{n}"): bucket_of(f"p{n}") for n in range(1, 6)}
    assert tensors["bucket"].tolist() == [buckets[key] for key in remaining]


def test_a_column_outside_the_permit_is_missing_throughout(hospitals: Path) -> None:
    _, every = build(hospitals / "hospital-1" / "store")
    manifest, some = build(hospitals / "hospital-1" / "store", columns=("age", "smoker", "cvd_10y"))
    assert manifest.permitted == ("age", "cvd_10y", "smoker")
    for name, place in PLACE.items():
        if name in ("age", "smoker"):
            np.testing.assert_array_equal(some["values"][:, place], every["values"][:, place])
        else:
            assert np.isnan(some["values"][:, place]).all()


def test_a_column_outside_the_permit_is_never_read(tmp_path: Path) -> None:
    ingest(
        write(tmp_path / "in", "a.ndjson", [patient(1), observation("o"), condition("c", "44054006", "2005")]),
        tmp_path / "store",
        node_key=KEY,
        dataset="d",
    )
    generation = Store(tmp_path / "store").current()
    assert generation is not None
    # Without these files and columns, any query that touches them fails.
    for table in ("observation", "medication_request", "encounter"):
        for part in generation.parts(table):
            part.unlink()
    [people] = generation.parts("patient")
    pq.write_table(pq.read_table(people).drop_columns(["birth_date"]), people)
    manifest, tensors = build(tmp_path / "store", columns=("male", "diabetes", "cvd_10y"))
    assert manifest.records == 3
    assert column(tensors, "diabetes") == [1.0] * 3
    assert column(tensors, "age") == [None] * 3


def test_a_permit_without_the_outcome_is_refused(hospitals: Path) -> None:
    with pytest.raises(ViewError) as caught:
        build(hospitals / "hospital-1" / "store", columns=("age", "male"))
    assert caught.value.code == "VHT-VIEW-OUTCOME"


def test_a_column_that_the_component_lacks_is_refused(hospitals: Path) -> None:
    with pytest.raises(InputError, match="no port weight"):
        build(hospitals / "hospital-1" / "store", columns=(*COLUMNS, "weight"))


def test_a_node_without_data_says_so(tmp_path: Path) -> None:
    with pytest.raises(CohortError) as caught:
        build(tmp_path / "store")
    assert caught.value.code == "VHT-COHORT-EMPTY-STORE"


def test_nobody_selected_is_an_empty_cohort_not_a_failure(tmp_path: Path) -> None:
    manifest, tensors = cohort(tmp_path, [patient(1, birthDate="2005-01-01")])
    assert (manifest.patients, manifest.records) == (0, 0)
    assert tensors["values"].shape == (0, len(PLACE))


def test_a_unit_that_a_new_component_cannot_turn_is_counted_and_left_out(tmp_path: Path) -> None:
    port = COMPONENT.port("systolic_bp")
    changed_port = port.model_copy(update={"source": port.source.model_copy(update={"codes": ("99999-9",)})})
    tested_component = COMPONENT.model_copy(
        update={"ports": tuple(changed_port if candidate is port else candidate for candidate in COMPONENT.ports)}
    )
    unmapped = {"coding": [{"system": LOINC, "code": "99999-9"}]}
    items = [patient(1), observation("o", code=unmapped, valueQuantity=quantity(5, "mmol/L"))]
    ingest(
        write(tmp_path / "in", "a.ndjson", items),
        tmp_path / "store",
        node_key=KEY,
        dataset="d",
        ports=(),  # a node whose components and code maps do not know this code keeps any unit
    )
    manifest, tensors = build(tmp_path / "store", tested_component)
    assert column(tensors, "systolic_bp") == [None] * 3
    assert manifest.quarantined_values == {"systolic_bp": 1}


def test_the_manifest_says_what_the_file_holds_and_neither_is_public(hospitals: Path) -> None:
    import hashlib

    _, tensors = build(hospitals / "hospital-3" / "store")
    folder = hospitals / "hospital-3" / "visits" / "v1" / "cohort"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["sha256"] == hashlib.sha256((folder / "cohort.safetensors").read_bytes()).hexdigest()
    assert (manifest["visit"], manifest["records"]) == ("v1", len(tensors["outcome"]))
    assert manifest["unit_table"]["hba1c"] == {"mmol/mol": [0.09148, 2.152]}
    assert manifest["unit_table"]["egfr"] == {"mL/min": [1.0, 0.0]}
    assert set(manifest["reread_values"]) == {"egfr"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in [folder, *folder.iterdir()])


def test_the_engine_reads_nothing_outside_its_folder(tmp_path: Path) -> None:
    import duckdb

    outside = tmp_path / "outside.parquet"
    pq.write_table(pa.table({"a": [1]}), outside)
    (tmp_path / "inside").mkdir()
    pq.write_table(pa.table({"a": [2]}), tmp_path / "inside" / "in.parquet")
    with locked([tmp_path / "inside"]) as connection:
        assert connection.execute(f"SELECT a FROM '{tmp_path}/inside/in.parquet'").fetchall() == [(2,)]
        for statement in (
            f"SELECT * FROM read_parquet('{outside}')",
            f"SELECT * FROM read_text('{tmp_path}/inside/../outside.parquet')",
            f"COPY (SELECT 1) TO '{tmp_path}/out.csv'",
            "SET enable_external_access = true",
            f"SET allowed_directories = ['{tmp_path}/']",
            "INSTALL httpfs",
            f"ATTACH '{tmp_path}/x.db'",
        ):
            with pytest.raises(duckdb.Error):
                connection.execute(statement)


def test_a_whole_hospital_takes_seconds(tmp_path: Path) -> None:
    import time

    generate(tmp_path / "in", hospitals=1, patients=1500, seed=1)
    ingest(tmp_path / "in" / "hospital-1", tmp_path / "store", node_key=KEY, dataset="d")
    begun = time.process_time()
    build(tmp_path / "store")
    assert time.process_time() - begun < 3.0
