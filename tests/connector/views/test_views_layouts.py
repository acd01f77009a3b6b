"""Repeated measures and sequences: the tensors are what a slow, plain reading of the resources says."""

import hashlib
import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.fhir_resources import KEY, condition, observation, patient, prescription, quantity, write
from kit.places import ROOT
from pydantic import ValidationError
from safetensors.numpy import load_file

from connector.enclave.cohort import read_cohort
from connector.fhir import ingest, subject_key
from connector.fhir.codes import Measure
from connector.views import CohortManifest, CohortSpecification, build_cohort
from vht_federate.components.contract import Component, Port, Profile, read_component
from vht_federate.samples.generator import RESOURCE_TYPES, generate

SHIPPED = read_component(ROOT / "vht_federate" / "components" / "cardio_risk")
INPUTS = ("age", "male", "systolic_bp", "total_cholesterol", "hba1c", "smoker", "diabetes", "antihypertensive")
DAY = timedelta(days=1)
REPEATED = {"layout": "repeated", "steps": 3}
SEQUENCE = {"layout": "sequence", "steps": 4, "window_days": 200}
Chart = dict[str, list[dict[str, Any]]]


def component(*, mean: tuple[str, ...] = (), **profile: Any) -> Component:
    chosen = {
        "title": "t",
        "inputs": INPUTS,
        "outcome": "cvd_10y",
        "landmarks": ["2010-01-01", "2012-01-01"],
        "horizon_years": 10,
    } | profile
    ports = [port.model_copy(update={"aggregate": "mean"} if port.name in mean else {}) for port in SHIPPED.ports]
    return SHIPPED.model_copy(update={"ports": tuple(ports), "profiles": {"p": Profile.model_validate(chosen)}})


def build(store: Path, for_component: Component, **more: Any) -> tuple[CohortManifest, dict[str, np.ndarray]]:
    folder = store.parent / "visits" / "v1" / "cohort"
    call = {name: more.pop(name) for name in ("included", "reader") if name in more}
    specification = CohortSpecification(for_component, "p", **{"columns": for_component.columns("p")} | more)
    manifest = build_cohort(store, specification, folder, **call)
    arrays = read_cohort(folder, for_component, "p")._open()
    tensors = load_file(folder / "cohort.safetensors")
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(getattr(arrays, name), tensor)
    return manifest, tensors


def cohort(tmp_path: Path, for_component: Component, items: list[Any], **more: Any) -> dict[str, np.ndarray]:
    ingest(write(tmp_path / "in", "data.ndjson", items), tmp_path / "store", node_key=KEY, dataset="d")
    return build(tmp_path / "store", for_component, **more)[1]


def measured(ident: str, when: str, value: float, **more: Any) -> dict[str, Any]:
    return observation(ident, effectiveDateTime=when, valueQuantity=quantity(value, "mm[Hg]"), **more)


def column(tensors: dict[str, np.ndarray], name: str, record: int = 0) -> list[tuple[float, float] | None]:
    """(value, days before) of each step; None where the mask is 0."""
    place = INPUTS.index(name)
    cells = zip(*(tensors[part][record, :, place].tolist() for part in ("values", "times", "mask")), strict=True)
    return [(round(value, 3), round(days, 3)) if known else None for value, days, known in cells]


# --- the oracle ---------------------------------------------------------------------------------------------------


def when(text: str) -> datetime:
    if "T" in text:
        return datetime.fromisoformat(text).astimezone(UTC)
    return datetime.combine(date.fromisoformat(text), datetime.min.time(), UTC)


def charts(folder: Path) -> dict[str, Chart]:
    charts_by_owner: dict[str, Chart] = {}
    for kind in RESOURCE_TYPES:
        for resource in map(json.loads, (folder / f"{kind}.ndjson").read_text().splitlines()):
            owner = resource["id"] if kind == "Patient" else resource["subject"]["reference"].split("/")[1]
            charts_by_owner.setdefault(owner, {name: [] for name in RESOURCE_TYPES})[kind].append(resource)
    return charts_by_owner


def events(port: Port, chart: Chart) -> list[tuple[datetime, float]]:
    """Every value of an observed port, or every onset of a condition or prescription, in order of time."""
    source, timed_values = port.source, []
    if source.type in ("condition", "medication"):
        kind, concept, dated = {
            "condition": ("Condition", "code", "onsetDateTime"),
            "medication": ("MedicationRequest", "medicationCodeableConcept", "authoredOn"),
        }[source.type]
        for resource in chart[kind]:
            if any(c["system"] == source.system and c["code"] in source.codes for c in resource[concept]["coding"]):
                timed_values.append((when(resource[dated]), 1.0))
    else:
        for resource in chart["Observation"]:
            for element in [resource, *resource.get("component", [])]:
                codings = element["code"]["coding"]
                if any(c["system"] == source.code_system and c["code"] in source.codes for c in codings):
                    timed_values.append((when(resource["effectiveDateTime"]), plain(port, element)))
    return sorted(timed_values)


def plain(port: Port, element: dict[str, Any]) -> float:
    if port.source.type == "observation":
        value_quantity = element["valueQuantity"]
        turn = Measure.of_port(port).turn(value_quantity["code"])
        assert turn is not None
        return turn.way(value_quantity["value"])
    code = element["valueCodeableConcept"]["coding"][0]["code"]
    return 1.0 if code in port.source.values else 0.0 if code in port.source.negatives else float("nan")


def expected(port: Port, chart: Chart, moment: datetime, profile: Profile) -> list[tuple[float, float] | None]:
    """(value, days before) by step, as the contract says it."""
    person = chart["Patient"][0]
    window = timedelta(days=profile.window_days)
    ends = [moment - back * window for back in reversed(range(profile.steps))]
    if port.source.type in ("age", "sex", "condition", "medication"):
        if port.source.type == "age":
            born = date.fromisoformat(person["birthDate"])
            years = moment.year - born.year - ((moment.month, moment.day) < (born.month, born.day))
            states = [float(years)] * profile.steps
        elif port.source.type == "sex":
            states = [float(person["gender"] == port.source.equals)] * profile.steps
        else:
            states = [float(any(at < end for at, _ in events(port, chart))) for end in ends]
        cells: list[tuple[float, float] | None] = [
            (state, (moment - end) / DAY) for state, end in zip(states, ends, strict=True)
        ]
        return cells if profile.layout == "sequence" else [None] * (profile.steps - 1) + cells[-1:]
    before = [(at, value) for at, value in events(port, chart) if at < moment]
    if profile.layout == "repeated":
        last = [(value, (moment - at) / DAY) for at, value in before[-profile.steps :]]
        return [None] * (profile.steps - len(last)) + [cell if cell[0] == cell[0] else None for cell in last]
    steps: list[tuple[float, float] | None] = []
    for end in ends:
        inside = [(value, (moment - at) / DAY) for at, value in before if end - window <= at < end]
        if not inside:
            steps.append(None)
        elif port.aggregate == "mean":
            steps.append((sum(v for v, _ in inside) / len(inside), sum(d for _, d in inside) / len(inside)))
        else:
            steps.append(inside[-1] if inside[-1][0] == inside[-1][0] else None)
    return steps


@pytest.fixture(scope="module")
def hospital(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hospital")
    generate(root / "in", hospitals=1, patients=60, seed=4)
    ingest(root / "in" / "hospital-1", root / "store", node_key=KEY, dataset="d")
    return root


@pytest.mark.parametrize(
    ("profile", "mean"),
    [(REPEATED, ()), (SEQUENCE, ()), (SEQUENCE | {"window_days": 500}, ("systolic_bp", "total_cholesterol", "hba1c"))],
    ids=["repeated", "sequence", "means"],
)
def test_the_tensors_are_what_a_slow_reading_says(hospital: Path, profile: Any, mean: tuple[str, ...]) -> None:
    tested_component = component(mean=mean, **profile)
    manifest, tensors = build(hospital / "store", tested_component)
    chosen, known = tested_component.profile("p"), charts(hospital / "in" / "hospital-1")
    by_subject = {subject_key(KEY, owner): chart for owner, chart in known.items()}
    rows: list[list[list[tuple[float, float] | None]]] = []
    for subject in sorted(by_subject):
        chart = by_subject[subject]
        onsets = [at for at, _ in events(tested_component.outcome("p"), chart)]
        died = chart["Patient"][0].get("deceasedDateTime")
        for landmark in chosen.landmarks:
            moment = datetime.combine(landmark, datetime.min.time(), UTC)
            if not any(at < moment for at in onsets) and not (died and when(died) < moment):
                rows.append([expected(port, chart, moment, chosen) for port in tested_component.inputs("p")])
    assert (manifest.records, manifest.layout) == (len(rows), chosen.layout)
    expected_tensors = np.array([[[(0, 0, 0) if c is None else (*c, 1) for c in port] for port in row] for row in rows])
    expected_tensors = expected_tensors.transpose(3, 0, 2, 1)
    np.testing.assert_array_equal(tensors["mask"], expected_tensors[2])
    np.testing.assert_allclose(tensors["values"], expected_tensors[0], rtol=1e-6)
    np.testing.assert_allclose(tensors["times"], expected_tensors[1], rtol=1e-6)
    observed = tensors["mask"][:, :, INPUTS.index("systolic_bp")]
    assert 0 < observed.mean() < 1
    assert observed.any(axis=0).sum() > 1


def test_the_last_step_of_a_repeated_profile_is_the_tabular_one(hospital: Path) -> None:
    _, repeated = build(hospital / "store", component(**REPEATED))
    _, tabular = build(hospital / "store", component())
    last = np.where(repeated["mask"][:, -1], repeated["values"][:, -1], np.nan)
    np.testing.assert_array_equal(last, tabular["values"])
    np.testing.assert_array_equal(repeated["patient"], tabular["patient"])


def test_the_same_store_gives_the_same_bytes(hospital: Path) -> None:
    tested_component = component(mean=("systolic_bp",), **SEQUENCE)
    assert build(hospital / "store", tested_component)[0] == build(hospital / "store", tested_component)[0]


# --- rules, one by one --------------------------------------------------------------------------------------------


def test_the_last_values_stand_at_the_end_with_their_days(tmp_path: Path) -> None:
    items = [
        patient(1),
        measured("a", "2009-12-31T12:00:00Z", 104),
        measured("b", "2009-12-01", 103),
        measured("c", "2008-01-01", 102),
        measured("d", "2007-01-01", 101),
        measured("e", "2010-01-01", 199),  # on the landmark: too late
    ]
    tensors = cohort(tmp_path, component(**REPEATED), items)
    assert column(tensors, "systolic_bp") == [(102.0, 731.0), (103.0, 31.0), (104.0, 0.5)]
    assert column(tensors, "hba1c") == [None, None, None]
    assert column(tensors, "age") == [None, None, (59.0, 0.0)]
    assert column(tensors, "diabetes") == [None, None, (0.0, 0.0)]
    assert tensors["values"].dtype == tensors["times"].dtype == np.float32
    assert tensors["mask"].dtype == np.uint8


def test_a_window_holds_its_first_instant_and_not_its_end(tmp_path: Path) -> None:
    tested_component = component(layout="sequence", steps=3, window_days=10)
    items = [
        patient(1),
        measured("a", "2009-12-22", 103),  # ten days before: the first instant of the last window
        measured("b", "2009-12-21T23:59:59Z", 102),
        measured("c", "2009-12-02", 101),
        measured("d", "2009-12-01T23:59:59Z", 100),  # before the first window
    ]
    tensors = cohort(tmp_path, tested_component, items)
    assert [cell and cell[0] for cell in column(tensors, "systolic_bp")] == [101.0, 102.0, 103.0]
    assert [cell and cell[1] for cell in column(tensors, "systolic_bp")] == [30.0, 10.0, 10.0]


def test_an_empty_window_is_masked_and_a_full_one_is_the_last_or_the_mean(tmp_path: Path) -> None:
    items = [
        patient(1),
        measured("a", "2009-12-30", 120),
        measured("b", "2009-12-28", 130),
        measured("c", "2009-12-10", 150),
    ]
    window = {"layout": "sequence", "steps": 3, "window_days": 10}
    last = cohort(tmp_path, component(**window), items)
    assert column(last, "systolic_bp") == [(150.0, 22.0), None, (120.0, 2.0)]
    _, mean = build(tmp_path / "store", component(mean=("systolic_bp",), **window))
    assert column(mean, "systolic_bp") == [(150.0, 22.0), None, (125.0, 3.0)]


def test_a_state_is_that_at_the_end_of_each_window(tmp_path: Path) -> None:
    items = [
        patient(1),
        condition("a", "44054006", "2009-12-12"),
        prescription("b", "C09AA05", "2009-12-11T23:59:59Z"),
    ]
    tensors = cohort(tmp_path, component(layout="sequence", steps=4, window_days=10), items)
    assert column(tensors, "diabetes") == [(0.0, 30.0), (0.0, 20.0), (1.0, 10.0), (1.0, 0.0)]
    assert column(tensors, "antihypertensive") == [(0.0, 30.0), (1.0, 20.0), (1.0, 10.0), (1.0, 0.0)]
    assert column(tensors, "male") == [(1.0, 30.0), (1.0, 20.0), (1.0, 10.0), (1.0, 0.0)]


def test_an_observation_with_two_codings_of_a_port_is_one_value(tmp_path: Path) -> None:
    code = {"coding": [{"system": "http://loinc.org", "code": c} for c in ("2093-3", "14647-2")]}
    items = [
        patient(1),
        observation("a", code=code, valueQuantity=quantity(200, "mg/dL")),
        observation("b", code=code, effectiveDateTime="2008-05-06", valueQuantity=quantity(190, "mg/dL")),
    ]
    tensors = cohort(tmp_path, component(**REPEATED), items)
    assert [cell and cell[0] for cell in column(tensors, "total_cholesterol")] == [None, 190.0, 200.0]


def test_a_code_without_meaning_takes_its_place_and_is_masked(tmp_path: Path) -> None:
    def smoked(ident: str, day: str, code: str) -> dict[str, Any]:
        item = observation(
            ident,
            effectiveDateTime=day,
            code={"coding": [{"system": "http://loinc.org", "code": "72166-2"}]},
            valueCodeableConcept={"coding": [{"system": "http://snomed.info/sct", "code": code}]},
        )
        del item["valueQuantity"]
        return item

    items = [patient(1), smoked("a", "2009-12-31", "1"), smoked("b", "2009-12-30", "77176002")]
    tensors = cohort(tmp_path, component(**REPEATED), items)
    assert column(tensors, "smoker") == [None, (1.0, 2.0), None]


@pytest.mark.parametrize("profile", [REPEATED, SEQUENCE], ids=["repeated", "sequence"])
def test_a_column_outside_the_permit_is_masked_throughout(hospital: Path, profile: dict[str, Any]) -> None:
    _, every = build(hospital / "store", component(**profile))
    _, some = build(hospital / "store", component(**profile), columns=("age", "smoker", "cvd_10y"))
    for place, name in enumerate(INPUTS):
        for part in ("values", "mask", "times"):
            expected_part = every[part][:, :, place] if name in ("age", "smoker") else 0
            np.testing.assert_array_equal(some[part][:, :, place], expected_part)


def test_an_index_by_onset_sets_each_patients_own_day(tmp_path: Path) -> None:
    tested_component = component(index="onset", landmarks=(), horizon_years=0, **REPEATED)
    items = [
        patient(1),
        measured("a", "2005-01-01", 101),
        measured("b", "2005-01-11", 102),
        condition("c", "230690007", "2005-01-21"),
        measured("d", "2006-01-01", 103),
    ]
    tensors = cohort(tmp_path, tested_component, items)
    assert column(tensors, "systolic_bp") == [None, (101.0, 20.0), (102.0, 10.0)]


def test_the_manifest_names_layout_shapes_and_digests(hospital: Path) -> None:
    manifest, tensors = build(hospital / "store", component(**SEQUENCE))
    assert (manifest.layout, manifest.steps, manifest.window_days) == ("sequence", 4, 200)
    assert set(manifest.tensors) == {"values", "mask", "times", "outcome", "patient", "bucket"}
    for name, entry in manifest.tensors.items():
        assert (entry["dtype"], tuple(entry["shape"])) == (str(tensors[name].dtype), tensors[name].shape)
        assert entry["sha256"] == hashlib.sha256(tensors[name].tobytes()).hexdigest()
    folder = hospital / "visits" / "v1" / "cohort"
    assert manifest.sha256 == hashlib.sha256((folder / "cohort.safetensors").read_bytes()).hexdigest()
    assert sorted(path.name for path in folder.iterdir()) == ["cohort.safetensors", "manifest.json"]


@pytest.mark.parametrize("profile", [{}, REPEATED, SEQUENCE], ids=["tabular", "repeated", "sequence"])
def test_nobody_selected_is_an_empty_cohort_not_a_failure(tmp_path: Path, profile: dict[str, Any]) -> None:
    tensors = cohort(tmp_path, component(**profile), [patient(1, birthDate="2005-01-01")])
    assert tensors["values"].shape == (0, *component(**profile).profile("p").shape)


WRONG_PROFILES: list[dict[str, Any]] = [
    {"layout": "wide"},
    {"steps": 2},
    {"layout": "repeated", "steps": 0},
    {"layout": "repeated", "steps": 4097},
    {"layout": "repeated", "steps": 2, "window_days": 5},
    {"layout": "sequence", "steps": 2},
    {"layout": "sequence", "steps": 2, "window_days": -1},
]


@pytest.mark.parametrize("wrong", WRONG_PROFILES, ids=str)
def test_a_layout_that_contradicts_itself_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        component(**wrong)


@pytest.mark.parametrize("name", ["smoker", "age", "diabetes"])
def test_only_an_observed_quantity_has_a_mean(name: str) -> None:
    with pytest.raises(ValidationError, match="mean"):
        Port.model_validate(SHIPPED.port(name).model_dump() | {"aggregate": "mean"})
