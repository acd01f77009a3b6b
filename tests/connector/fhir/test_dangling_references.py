"""References to what is not in the data are a finding: counted, shown, and no loss of what refers."""

from pathlib import Path
from typing import Any

from kit.console_session import Console
from kit.fhir_resources import KEY, condition, observation, patient, write
from kit.hospital import Hospital

from connector.cli.output_tables import intake_table
from connector.fhir import IngestReport, ingest

STAY = {"resourceType": "Encounter", "id": "e1", "status": "finished", "class": {"code": "IMP"},
        "subject": {"reference": "Patient/p1"}}  # fmt: skip


def during(resource: dict[str, Any], encounter: str) -> dict[str, Any]:
    return resource | {"encounter": {"reference": encounter}}


def take(tmp_path: Path, items: list[Any], **more: Any) -> IngestReport:
    return ingest(write(tmp_path / "in", "x.ndjson", items), tmp_path / "store", node_key=KEY, dataset="d", **more)


def test_each_element_is_counted_that_names_what_is_neither_in_the_export_nor_held(tmp_path: Path) -> None:
    panel = observation("o1", component=[{"code": {"coding": [{"code": part}]}} for part in "abc"])
    items = [
        during(panel, "Encounter/gone"),
        during(observation("o2", 2), "Encounter/e1"),
        during(condition("c1", "38341003", "2009", 2), "https://x.example/fhir/Encounter/gone"),
        observation("o3"),
        patient(1),
        STAY,
    ]
    report = take(tmp_path, items)
    assert (report.accepted, report.quarantined) == (6, 0)
    assert report.dangling_references == {
        "Condition.encounter": 1, "Condition.subject": 1, "Observation.encounter": 1, "Observation.subject": 1,
    }  # fmt: skip
    assert report.to_dict()["dangling_references"] == report.dangling_references


def test_what_the_store_holds_or_gets_is_there_and_what_leaves_it_is_not(tmp_path: Path) -> None:
    assert take(tmp_path, [patient(1), STAY]).dangling_references == {}
    assert take(tmp_path, [during(observation("o1"), "Encounter/e1")]).dangling_references == {}
    newer = {"meta": {"lastUpdated": "2020-01-01T00:00:00Z"}}
    report = take(tmp_path, [STAY | newer | {"status": "cancelled"}, during(observation("o2"), "Encounter/e1")])
    assert (report.accepted, report.dangling_references) == (1, {}), "a contradiction leaves the first one held"
    assert take(tmp_path, [during(observation("o3"), "Encounter/e1")], replace=True).dangling_references == {
        "Observation.encounter": 1,
        "Observation.subject": 1,
    }


def test_what_was_accepted_before_is_not_counted_again(tmp_path: Path) -> None:
    items = [observation("o1", 5)]
    assert take(tmp_path, items).dangling_references == {"Observation.subject": 1}
    assert take(tmp_path, items).dangling_references == {}


def test_a_report_and_a_page_show_them(hospital: Hospital, tmp_path: Path) -> None:
    folder = write(tmp_path / "in", "x.ndjson", [observation("o1", 5)])
    with hospital.open(start=False) as node:
        report = node.ingest(folder)
        [kept] = node.overview.ingests()
        console = Console(node, hospital)
        console.log_in()
        page = console.browser.get("/datasets").text
    assert "refers to what is not held" in page
    assert "Observation.subject</code> 1<" in page
    assert kept["dangling_references"] == report["dangling_references"] == {"Observation.subject": 1}
    assert ("refers to what is not held: Observation.subject", 1) in intake_table(folder, report).rows
