"""Within a Bundle everything refers to everything, in any order, and what comes of it is what NDJSON would give."""

import itertools
import json
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from kit.fhir_resources import KEY, observation, patient, write

from connector.fhir import IngestReport, Store, ingest
from connector.fhir.subject_keys import resource_key, subject_key

PERSON, STAY, READING = (f"urn:uuid:{digit * 8}-1111-4111-8111-111111111111" for digit in "abc")
BASE = "https://hospital.example/fhir/"


def stay(ident: str | None = "enc1", who: str = "Patient/p1", **more: Any) -> dict[str, Any]:
    own = {"id": ident} if ident else {}
    return {
        "resourceType": "Encounter",
        **own,
        "status": "finished",
        "class": {"code": "AMB"},
        "subject": {"reference": who},
    } | more


def without_id(resource: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in resource.items() if name != "id"}


def reading(who: str = "Patient/p1", during: str = "Encounter/enc1") -> dict[str, Any]:
    return observation("o1", subject={"reference": who}, encounter={"reference": during})


def entry(resource: dict[str, Any], url: str | None = None, method: str | None = None) -> dict[str, Any]:
    request = {"request": {"method": method, "url": resource["resourceType"]}} if method else {}
    return {"resource": resource} | ({"fullUrl": url} if url else {}) | request


def take(tmp_path: Path, entries: list[Any], kind: str = "transaction", **more: Any) -> IngestReport:
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    bundle = {"resourceType": "Bundle", "type": kind, "entry": entries, **more}
    (folder / "b.json").write_text(json.dumps(bundle))
    return ingest(folder, tmp_path / "store", node_key=KEY, dataset="d")


def rows(tmp_path: Path, table: str) -> list[dict[str, Any]]:
    generation = Store(tmp_path / "store").current()
    assert generation is not None
    return [row for part in generation.parts(table) for row in pq.read_table(part).to_pylist()]


def one_visit(tmp_path: Path, person: str, encounter: str) -> bool:
    """Is there one patient with one encounter, and one reading of both?"""
    who, during = subject_key(KEY, person), resource_key(KEY, "Encounter", encounter)
    [reading_row], [stay_row], [patient_row] = (
        rows(tmp_path, name) for name in ("observation", "encounter", "patient")
    )
    return {reading_row["subject"], stay_row["subject"], patient_row["subject"]} == {who} and reading_row[
        "encounter"
    ] == stay_row["resource"] == during


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("kind", ["transaction", "document", "collection"])
def test_every_reference_by_full_url_is_resolved_in_any_order(
    tmp_path: Path, order: tuple[int, ...], kind: str
) -> None:
    entries = [entry(patient(1), PERSON), entry(stay("enc1", PERSON), STAY), entry(reading(PERSON, STAY), READING)]
    report = take(tmp_path, [entries[place] for place in order], kind)
    assert (report.accepted, report.dangling_references) == (3, {})
    assert one_visit(tmp_path, "p1", "enc1")
    plain = write(tmp_path / "lines", "x.ndjson", [patient(1), stay(), reading()])
    assert ingest(plain, tmp_path / "store", node_key=KEY, dataset="d").duplicate == 3


def test_what_a_transaction_posts_is_known_by_the_uuid_of_its_full_url(tmp_path: Path) -> None:
    items = [(reading(PERSON, STAY), READING), (stay(None, PERSON), STAY), (patient(1), PERSON)]
    report = take(tmp_path, [entry(without_id(resource), url, "POST") for resource, url in items])
    assert (report.lines, report.accepted, report.reasons) == (3, 3, {})
    assert one_visit(tmp_path, PERSON.removeprefix("urn:uuid:"), STAY.removeprefix("urn:uuid:"))


def test_uuids_are_the_same_in_capitals_and_versions_name_what_they_are_of(tmp_path: Path) -> None:
    shouted = "urn:uuid:" + PERSON.removeprefix("urn:uuid:").upper()
    versioned = f"{BASE}Encounter/enc1/_history/3"
    take(
        tmp_path,
        [
            entry(patient(1), PERSON),
            entry(stay("enc1", shouted), f"{BASE}Encounter/enc1"),
            entry(reading(shouted, versioned)),
        ],
    )
    assert one_visit(tmp_path, "p1", "enc1")


def test_a_relative_reference_is_relative_to_the_address_of_its_own_entry(tmp_path: Path) -> None:
    """The address of an entry and the id that a server gave it may differ; the address is what is referred to."""
    entries = [
        entry(patient(1), f"{BASE}Patient/old"),
        entry(without_id(stay("-", "Patient/old")), f"{BASE}Encounter/enc1"),
        entry(reading(f"{BASE}Patient/old", "Encounter/enc1"), f"{BASE}Observation/o1"),
    ]
    assert take(tmp_path, entries, "searchset").accepted == 3
    assert one_visit(tmp_path, "p1", "enc1")


@pytest.mark.parametrize("search", ["identifier=urn:mrn|7", "identifier=urn%3Amrn%7C7", "identifier=7"])
def test_a_search_by_identifier_finds_the_one_entry_that_has_it(tmp_path: Path, search: str) -> None:
    known = patient(1, identifier=[{"system": "urn:mrn", "value": "7"}])
    other = patient(2, identifier=[{"system": "urn:mrn", "value": "8"}])
    during = stay(identifier=[{"system": "urn:visit", "value": "v"}])
    read = reading(f"Patient?{search}", "Encounter?identifier=urn:visit|v")
    report = take(tmp_path, [entry(item) for item in (read, known, other, during)])
    assert (report.accepted, report.reasons, report.dangling_references) == (4, {}, {})
    [row] = rows(tmp_path, "observation")
    assert row["subject"] == subject_key(KEY, "p1")
    assert row["encounter"] == resource_key(KEY, "Encounter", "enc1")


@pytest.mark.parametrize(
    "search", ["identifier=urn:mrn|9", "identifier=7", "identifier=|7", "name=x", "identifier=urn:mrn|7&name=x"]
)
def test_a_search_that_finds_none_or_several_is_counted_and_names_nobody(tmp_path: Path, search: str) -> None:
    twins = [patient(number, identifier=[{"system": f"urn:{number}", "value": "7"}]) for number in (1, 2)]
    report = take(tmp_path, [entry(item) for item in (*twins, reading(f"Patient?{search}"))])
    assert (report.accepted, report.reasons) == (2, {"unresolved": 1})
    report = take(tmp_path, [entry(item) for item in (*twins, reading(during=f"Encounter?{search}"))])
    assert (report.accepted, report.dangling_references) == (1, {"Observation.encounter": 1})


def test_two_entries_of_one_full_url_give_no_name_to_anybody(tmp_path: Path) -> None:
    report = take(tmp_path, [entry(patient(1), PERSON), entry(patient(2), PERSON), entry(reading(PERSON))])
    assert report.dangling_references == {"Observation.encounter": 1, "Observation.subject": 1}


@pytest.mark.parametrize("subject", ["Group/g", "Device/d", f"{BASE}Location/l"])
def test_a_uuid_that_names_no_patient_is_no_patient(tmp_path: Path, subject: str) -> None:
    kind = subject.removeprefix(BASE).split("/")[0]
    entries = [entry({"resourceType": kind, "id": "x"}, STAY), entry(reading(STAY)), entry(reading(subject))]
    assert take(tmp_path, entries).reasons == {"not-a-patient": 2, "unsupported-type": 1}


def past(method: str, kind: str, second: int, resource: dict[str, Any] | None = None) -> dict[str, Any]:
    moment = f"2020-01-01T00:00:{second:02d}Z"
    content = {"resource": resource | {"meta": {"lastUpdated": moment}}} if resource else {}
    return {
        "fullUrl": f"{BASE}{kind}",
        "request": {"method": method, "url": kind},
        "response": {"status": "200", "lastModified": moment},
        **content,
    }


def test_a_history_gives_the_newest_version_and_what_was_deleted_in_it_is_not_held(tmp_path: Path) -> None:
    entries = [
        past("DELETE", "Patient/p2", 5),
        past("PUT", "Patient/p1", 4, patient(1, gender="female")),
        past("POST", "Patient/p2", 2, patient(2)),
        past("POST", "Patient/p1", 1, patient(1)),
    ]
    report = take(tmp_path, entries, "history")
    assert (report.accepted, report.superseded, report.patients) == (1, 2, 1)
    assert report.reasons == {"no-resource": 1}
    assert [row["gender"] for row in rows(tmp_path, "patient")] == ["female"]


@pytest.mark.parametrize(
    ("more", "reason", "patients"),
    [({}, "unreadable-deletion", 1), ({"timestamp": "2020-01-01T00:00:09Z"}, "no-resource", 0)],
)
def test_a_deletion_of_no_known_time_is_as_late_as_its_bundle_or_counts_for_nothing(
    tmp_path: Path, more: dict[str, Any], reason: str, patients: int
) -> None:
    gone = {"request": {"method": "DELETE", "url": "Patient/p1"}}
    report = take(tmp_path, [gone, past("POST", "Patient/p1", 1, patient(1))], "history", **more)
    assert (report.reasons, report.patients) == ({reason: 1}, patients)
