"""The store as FHIR again: what was kept comes back, and views see the same through either door."""

import json
import os
import tarfile
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit.fhir_resources import KEY, LOINC, SNOMED, condition, observation, patient, prescription, quantity, write
from kit.hypothesis_profiles import examples
from kit.places import SHARED

from connector.duckdb_lockdown import locked
from connector.fhir import Store, ingest
from connector.fhir.rendering import keyed, relation, resources
from connector.fhir.store import Generation
from connector.fhir.subject_keys import resource_key, subject_key
from connector.views.sql import compile_view, run
from connector.views.sql.execution import run_over
from connector.views.sql.shipped import shipped
from vht_federate.errors import InputError

VIEWS = ("patients", "blood_pressure", "observation_codings", "conditions", "encounters", "medication_requests")
KINDS = {view: shipped(view)["resource"] for view in VIEWS}
OF_EACH = 8_000  # lines of each type of the real export
GSD = SHARED / "data" / "gsd_r4_ndjson.tgz"


def stored(tmp_path: Path, items: list[Any], **more: Any) -> Generation:
    ingest(write(tmp_path / "in", "data.ndjson", items), tmp_path / "store", node_key=KEY, dataset="d", **more)
    generation = Store(tmp_path / "store").current()
    assert generation is not None
    return generation


def everything(generation: Generation) -> list[dict[str, Any]]:
    return [resource for kind in sorted(set(KINDS.values())) for resource in resources(generation, kind)]


def over_store(generation: Generation, view: str) -> list[dict[str, Any]]:
    with locked([generation.folder.resolve()]) as connection:
        return run_over(compile_view(shipped(view)), connection, relation(generation, KINDS[view]))


def counted(rows: list[dict[str, Any]]) -> Counter[str]:
    return Counter(json.dumps(row, sort_keys=True) for row in rows)


def test_an_observation_comes_back_with_what_was_kept_of_it(tmp_path: Path) -> None:
    sent = observation(
        "o1",
        code={"text": "free", "coding": [{"system": LOINC, "code": "b", "display": "B"}, {"code": 'a"\\'}]},
        effectiveDateTime="2009-05-06T07:08:09.125+02:00",
        encounter={"reference": "Encounter/e1"},
        note=[{"text": "secret"}],
    )
    [rendered] = [
        resource
        for resource in everything(stored(tmp_path, [patient(1), sent]))
        if resource["resourceType"] == "Observation"
    ]
    assert rendered.pop("meta").keys() == {"lastUpdated"}
    assert rendered == {
        "resourceType": "Observation",
        "id": resource_key(KEY, "Observation", "o1"),
        "status": "final",
        "code": {"coding": [{"system": LOINC, "code": "b"}, {"code": 'a"\\'}]},
        "subject": {"reference": f"Patient/{subject_key(KEY, 'p1')}"},
        "encounter": {"reference": f"Encounter/{resource_key(KEY, 'Encounter', 'e1')}"},
        "effectiveDateTime": "2009-05-06T05:08:09.125Z",
        "valueQuantity": quantity(140.0, "mm[Hg]"),
    }


def test_components_codes_and_truths_keep_their_place_and_order(tmp_path: Path) -> None:
    parts = [
        {"code": {"coding": [{"code": f"c{n}"}, {"code": "x"}]}, **value}
        for n, value in enumerate(
            [
                {
                    "valueCodeableConcept": {
                        "coding": [{"system": SNOMED, "code": "z"}, {"system": SNOMED, "code": "y"}]
                    }
                },
                {"valueBoolean": False},
                {"valueQuantity": quantity(1, "no-unit-at-all")},
                {"valueString": "free text"},
                {"valueInteger": 3},
            ]
        )
    ]
    generation = stored(tmp_path, [patient(1), observation("o1", valueQuantity=None, component=parts)])
    [rendered] = resources(generation, "Observation")
    assert [part["code"]["coding"] for part in rendered["component"]] == [
        [{"code": f"c{n}"}, {"code": "x"}] for n in range(5)
    ]
    assert "valueQuantity" not in rendered
    codes, truth, unknown, text, whole = rendered["component"]
    assert [coding["code"] for coding in codes["valueCodeableConcept"]["coding"]] == ["z", "y"]
    assert truth["valueBoolean"] is False
    assert unknown.keys() == text.keys() == {"code"}
    assert whole["valueQuantity"] == quantity(3.0, "1")


def test_people_conditions_and_encounters_come_back(tmp_path: Path) -> None:
    encounter = {
        "resourceType": "Encounter",
        "id": "e1",
        "status": "finished",
        "class": {"code": "AMB", "display": "ambulatory"},
        "type": [{"text": "no code"}, {"coding": [{"system": SNOMED, "code": "185349003"}]}],
        "reasonCode": [{"coding": [{"system": SNOMED, "code": "38341003"}]}],
        "subject": {"reference": "Patient/p1"},
        "period": {"start": "2009-05-06T07:08:09Z"},
    }
    ended = condition(
        "c1",
        "38341003",
        "2009",
        clinicalStatus={"coding": [{"code": "resolved"}]},
        abatementDateTime="2010-01-02",
        recordedDate="2009-06-01",
        encounter={"reference": "urn:uuid:e1"},
    )
    request = prescription("m1", "C09", "2011-01-01", doNotPerform=True)
    dead = patient(1, deceasedDateTime="2020-02-02T00:00:00Z", active=False)
    by_type = {
        resource["resourceType"]: resource
        for resource in everything(stored(tmp_path, [dead, encounter, ended, request]))
    }
    assert (by_type["Patient"]["active"], by_type["Patient"]["deceasedDateTime"]) == (False, "2020-02-02T00:00:00Z")
    assert by_type["Patient"]["birthDate"] == "1950-03-04"
    rendered_encounter = by_type["Encounter"]
    assert (rendered_encounter["class"]["code"], rendered_encounter["period"]) == (
        "AMB",
        {"start": "2009-05-06T07:08:09Z"},
    )
    assert rendered_encounter["type"][0]["coding"][0]["code"] == "185349003"
    assert rendered_encounter["reasonCode"][0]["coding"][0]["code"] == "38341003"
    ill = by_type["Condition"]
    assert ill["encounter"] == {"reference": f"Encounter/{rendered_encounter['id']}"}
    assert (ill["clinicalStatus"]["coding"][0]["code"], "verificationStatus" in ill) == ("resolved", False)
    assert ill["onsetDateTime"] == "2009"
    assert (ill["abatementDateTime"], ill["recordedDate"]) == ("2010-01-02T00:00:00Z", "2009-06-01T00:00:00Z")
    assert by_type["MedicationRequest"]["doNotPerform"] is True


def test_an_encounter_keeps_every_type_and_reason_and_the_system_of_its_class(tmp_path: Path) -> None:
    local, snomed = {"system": "urn:local", "code": "visit"}, {"system": SNOMED, "code": "185349003"}
    sent = {
        "resourceType": "Encounter",
        "id": "e1",
        "status": "finished",
        "class": {"system": "urn:local", "code": "AMB"},
        "type": [{"coding": [local, snomed]}, {"coding": [{"system": SNOMED, "code": "50849002"}, local]}],
        "reasonCode": [{"coding": [{"code": "b"}]}],
        "subject": {"reference": "Patient/p1"},
    }
    untyped = {name: value for name, value in sent.items() if name != "type"}
    others = [{**untyped, "id": "e2", "class": {"code": "AMB"}}, {**sent, "id": "e3", "class": {"display": "ward"}}]
    generation = stored(tmp_path, [patient(1), sent, *others])
    named = {resource_key(KEY, "Encounter", f"e{n}"): n for n in (1, 2, 3)}
    by_number = {named[resource["id"]]: resource for resource in resources(generation, "Encounter")}
    assert [coding["code"] for concept in by_number[1]["type"] for coding in concept["coding"]] == [
        "visit", "185349003", "50849002",
    ]  # fmt: skip
    assert [concept["coding"] for concept in by_number[1]["reasonCode"]] == [[{"code": "b"}]]
    assert by_number[1]["class"] == {"system": "urn:local", "code": "AMB"}
    assert by_number[2]["class"] == {
        "system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "AMB",
    }  # fmt: skip
    assert ("type" in by_number[2], "class" in by_number[3]) == (False, False)
    assert generation.counts() == {"Encounter": 3, "Patient": 1}


def test_encounters_of_a_store_that_kept_one_type_and_no_system_come_back_beside_new_ones(tmp_path: Path) -> None:
    sent = {"resourceType": "Encounter", "id": "e1", "status": "finished", "class": {"code": "AMB"}}
    sent |= {"subject": {"reference": "Patient/p1"}, "type": [{"coding": [{"code": "t"}]}]}
    for part in stored(tmp_path, [patient(1), sent]).parts("encounter"):  # as it was written before
        pq.write_table(pq.read_table(part).drop_columns(["class_system"]), part)
    newer = {**sent, "id": "e2", "class": {"system": "urn:local", "code": "X"}}
    rendered = [(one["class"]["code"], one["type"]) for one in resources(stored(tmp_path, [newer]), "Encounter")]
    assert sorted(rendered, key=str) == [(code, [{"coding": [{"code": "t"}]}]) for code in ("AMB", "X")]


def test_resources_come_in_order_of_id_and_under_the_names_they_are_given(tmp_path: Path) -> None:
    items = [patient(n) for n in range(20)] + [observation(f"o{n}", n % 20) for n in range(200)]
    generation = stored(tmp_path, items)
    observations = list(resources(generation, "Observation"))
    assert [resource["id"] for resource in observations] == sorted(
        resource_key(KEY, "Observation", f"o{n}") for n in range(200)
    )
    named = list(resources(generation, "Observation", name=lambda key: f"x{key[:8]}"))
    assert [resource["id"] for resource in named] == [f"x{resource['id'][:8]}" for resource in observations]
    assert {resource["subject"]["reference"] for resource in named} == {
        f"Patient/x{subject_key(KEY, f'p{n}')[:8]}" for n in range(20)
    }


def test_a_condition_on_rows_leaves_the_rest_as_if_never_stored(tmp_path: Path) -> None:
    part = [
        {"code": {"coding": [{"system": LOINC, "code": code}]}, "valueQuantity": quantity(1, "mm[Hg]")} for code in "ab"
    ]
    generation = stored(tmp_path, [patient(1), observation("o1", component=part), observation("o2")])
    with locked([generation.folder.resolve()]) as connection:
        sql = keyed(generation, "Observation", rows="code = $code")
        [(_, _, _, content)] = connection.execute(sql, {"code": "b"}).fetchall()
    rendered = orjson.loads(content)
    assert [component["code"]["coding"][0]["code"] for component in rendered["component"]] == ["b"]
    assert "valueQuantity" not in rendered
    assert rendered["code"]["extension"][0]["valueCode"] == "masked"


def test_parts_of_a_store_made_before_a_column_was_kept_are_read_without_it(tmp_path: Path) -> None:
    generation = stored(tmp_path, [patient(1), condition("c1", "38341003", "2009-01-01")])
    [part] = generation.parts("condition")
    pq.write_table(pq.read_table(part).drop_columns(["encounter", "clinical", "abated", "recorded"]), part)
    ingest(
        write(tmp_path / "more", "data.ndjson", [condition("c2", "1", "2010-01-01", recordedDate="2010-02-01")]),
        tmp_path / "store",
        node_key=KEY,
        dataset="d",
    )
    newest = Store(tmp_path / "store").current()
    assert newest is not None
    assert sorted(resource.get("recordedDate", "") for resource in resources(newest, "Condition")) == [
        "",
        "2010-02-01T00:00:00Z",
    ]


def test_an_update_leaves_the_time_of_what_it_did_not_touch(tmp_path: Path) -> None:
    old = [observation(f"o{n}", meta={"versionId": "1"}) for n in (1, 2)]
    generation = stored(tmp_path, [patient(1), *old])
    for part in generation.folder.iterdir():
        os.utime(part, (1_000_000_000, 1_000_000_000))
    ingest(
        write(tmp_path / "more", "data.ndjson", [observation("o1", meta={"versionId": "2"})]),
        tmp_path / "store",
        node_key=KEY,
        dataset="d",
    )
    newest = Store(tmp_path / "store").current()
    assert newest is not None
    times = {
        resource["id"]: datetime.fromisoformat(resource["meta"]["lastUpdated"])
        for resource in resources(newest, "Observation")
    }
    assert times[resource_key(KEY, "Observation", "o2")] == datetime.fromtimestamp(1_000_000_000, UTC)
    assert times[resource_key(KEY, "Observation", "o1")].year > 2020


def test_a_type_that_is_not_kept_is_refused(tmp_path: Path) -> None:
    generation = stored(tmp_path, [patient(1)])
    with pytest.raises(InputError) as refused:
        relation(generation, "Procedure'; DROP")
    assert refused.value.code == "VHT-INPUT-FHIR-TYPE"
    assert list(resources(generation, "Condition")) == []


CODES = st.sampled_from(["8480-6", "8462-4", "x-1", "ü\\\"'", "a b"])
VALUES = st.one_of(
    st.builds(lambda n: {"valueQuantity": quantity(n, "mm[Hg]")}, st.floats(allow_nan=False, allow_infinity=False)),
    st.builds(lambda b: {"valueBoolean": b}, st.booleans()),
    st.builds(
        lambda c: {"valueCodeableConcept": {"coding": [{"system": SNOMED, "code": code} for code in c]}},
        st.lists(CODES, min_size=1),
    ),
    st.just({}),
)
PLACES = st.builds(
    lambda codes, value: {"code": {"coding": [{"system": LOINC, "code": code} for code in codes]}} | value,
    st.lists(CODES, min_size=1, max_size=3),
    VALUES,
)


def apart(place: dict[str, Any], parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Where the whole has a value, no part may have its code (R4, obs-7)."""
    whole = place["code"]["coding"] if len(place) > 1 else []
    return [part for part in parts if not any(coding in whole for coding in part["code"]["coding"])]


@settings(
    max_examples=examples(3, thorough=50), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(PLACES, st.lists(PLACES, max_size=3)), min_size=8, max_size=16))
def test_views_see_the_store_and_its_rendered_lines_alike(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[dict[str, Any], list[dict[str, Any]]]]
) -> None:
    drawn = [(place, apart(place, parts)) for place, parts in drawn]
    items = [
        observation(f"o{n}", valueQuantity=None, component=parts or None) | place
        for n, (place, parts) in enumerate(drawn)
    ]
    generation = stored(tmp_path_factory.mktemp("store"), [patient(1), *items])
    lines = list(resources(generation, "Observation"))
    numbers = [place["valueQuantity"]["value"] for place, _ in drawn if "valueQuantity" in place]
    assert sorted(numbers) == sorted(line["valueQuantity"]["value"] for line in lines if "valueQuantity" in line)
    for view in ("observation_codings", "blood_pressure"):
        assert counted(over_store(generation, view)) == counted(run(shipped(view), lines))


# --- a real export ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Generation]:
    if not GSD.is_file():
        if os.environ.get("CI") == "true":
            pytest.fail(f"{GSD.name} is missing")
        pytest.skip(f"needs {GSD.name}")
    folder = tmp_path_factory.mktemp("gsd")
    with tarfile.open(GSD) as archive:
        archive.extractall(folder, filter="data")
    for path in folder.glob("*.ndjson"):
        path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:OF_EACH]))
    ingest(folder, folder / "store", node_key=KEY, dataset="d")
    generation = Store(folder / "store").current()
    assert generation is not None
    return folder, generation


_KEYS = {
    "observation": "Observation",
    "condition": "Condition",
    "encounter": "Encounter",
    "request": "MedicationRequest",
}


def _as_stored(row: dict[str, Any]) -> dict[str, Any]:
    """A row of the original export in the store's words: keys, instants in UTC."""
    converted = dict(row)
    for name, kind in _KEYS.items():
        if converted.get(name) is not None:
            converted[name] = resource_key(KEY, kind, converted[name])
    converted["patient"] = subject_key(KEY, row["patient"])
    for name in ("effective", "onset", "abatement", "recorded", "authored", "started", "ended", "deceased_at"):
        if converted.get(name) is not None:
            moment = datetime.fromisoformat(converted[name]).astimezone(UTC)
            converted[name] = moment.isoformat().replace("+00:00", "Z")
    converted.pop("marital_status", None)  # not kept
    return converted


def _without_value(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name not in {"value", "unit", "value_code"} | _PRESSURES}


_PRESSURES = {"systolic", "systolic_unit", "diastolic", "diastolic_unit"}


@pytest.mark.parametrize("view", VIEWS)
def test_every_shipped_view_sees_the_real_export_as_its_store(export: tuple[Path, Generation], view: str) -> None:
    folder, generation = export
    original = [orjson.loads(line) for line in (folder / f"{KINDS[view]}.ndjson").read_bytes().splitlines()]
    expected = [_as_stored(row) for row in run(shipped(view), original)]
    actual = [
        {name: value for name, value in row.items() if name != "marital_status"} for row in over_store(generation, view)
    ]
    assert len(actual) == len(expected) > 500
    assert counted([_without_value(row) for row in actual]) == counted([_without_value(row) for row in expected])
    missing = counted(expected) - counted(actual)
    if KINDS[view] != "Observation":
        assert not missing
        return
    set_aside = {line["line"] for line in generation.quarantine() if line["kind"] == "value"}
    unread = {resource_key(KEY, "Observation", original[line - 1]["id"]) for line in set_aside}
    assert {json.loads(row)["observation"] for row in missing} <= unread  # values that intake counted and left out


@pytest.mark.parametrize("view", ["patients", "conditions", "blood_pressure"])
def test_the_rendered_lines_of_the_real_export_give_the_same_rows(export: tuple[Path, Generation], view: str) -> None:
    _, generation = export
    lines = resources(generation, KINDS[view])
    assert counted(over_store(generation, view)) == counted(run(shipped(view), lines))
