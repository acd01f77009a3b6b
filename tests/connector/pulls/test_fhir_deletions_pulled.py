"""Lists of deletions as servers really send them: a pull ends, and no deletion that was not read is forgotten."""

import json
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from fastapi.responses import JSONResponse
from kit.bulk_data_server import BulkServer
from kit.commands import vht_node
from kit.fhir_resources import observation, patient
from kit.hospital import Hospital
from rich.console import Console

from connector.cli.output_tables import source_tables
from connector.fhir import Store
from connector.listeners.internal import internal_app
from vht_federate.testing.asgi import AppClient

OLD, NEW = "2020-01-01T00:00:00+00:00", "2040-01-01T00:00:00+00:00"
ODD = {"request": {"method": "DELETE", "url": "Patient?identifier=7"}}


@pytest.fixture
def server() -> Iterator[BulkServer]:
    meta = {"meta": {"lastUpdated": OLD}}
    resources = {
        "Patient": [patient(number, **meta) for number in range(5)],
        "Observation": [observation(f"o{number}", number % 5, **meta) for number in range(30)],
    }
    with BulkServer(resources, polls=0).running() as running:
        yield running


def write(hospital: Hospital, server: BulkServer, **changes: Any) -> Path:
    path = hospital.root / "ehr.toml"
    fields = {"name": "ehr", "base_url": server.base, "types": ["Patient", "Observation"], "attempts": 2}
    path.write_text(tomli_w.dumps(fields | changes))
    return path


def pull(hospital: Hospital, server: BulkServer, *options: str, **changes: Any) -> dict[str, Any]:
    return vht_node("pull", hospital.state, "--from", write(hospital, server, **changes), *options)


def taken_up_to(hospital: Hospital) -> datetime | None:
    try:
        last_pull = json.loads((hospital.state / "sources" / "ehr" / "last.json").read_text())
    except FileNotFoundError:
        return None
    return datetime.fromisoformat(last_pull["transaction_time"])


def counts(hospital: Hospital) -> dict[str, int]:
    current = Store(hospital.state / "fhir").current()
    return {kind: count for kind, count in (current.counts() if current else {}).items() if count}


def deletion(url: str, response: Any) -> dict[str, Any]:
    return {"request": {"method": "DELETE", "url": url}, "response": response}


def test_one_odd_entry_neither_stops_the_source_nor_is_forgotten(hospital: Hospital, server: BulkServer) -> None:
    pull(hospital, server)
    first = taken_up_to(hospital)
    server.deleted = [deletion("/Observation/o3", "204"), ODD, "Patient/p1", "List/a_b"]
    server.resources["Observation"].append(observation("late", 2, meta={"lastUpdated": NEW}))
    for again in range(2):
        done = pull(hospital, server)
        assert (done["pulled"]["deleted"], done["pulled"]["unreadable"]) == (2, 1)
        assert done["intake"]["reasons"] == {"unreadable-deletion": 1}
        assert (done["intake"]["accepted"], done["intake"]["deleted"]) == ((0, 0) if again else (1, 8))
        assert datetime.fromisoformat(done["pulled"]["since"]) == taken_up_to(hospital) == first
        assert counts(hospital) == {"Patient": 4, "Observation": 24}
        assert {path.name for path in (hospital.state / "sources" / "ehr").iterdir()} == {"last.json", "lock"}
    server.deleted[1] = "Patient/p2"
    done = pull(hospital, server)
    assert (done["pulled"]["unreadable"], counts(hospital)["Patient"]) == (0, 3)
    moved = taken_up_to(hospital)
    assert first is not None
    assert moved is not None
    assert moved > first


def test_an_export_of_everything_lists_no_deletions_so_the_next_pull_still_asks_for_them(
    hospital: Hospital, server: BulkServer
) -> None:
    pull(hospital, server)
    first = taken_up_to(hospital)
    assert pull(hospital, server, "--full")["pulled"]["since"] is None
    assert taken_up_to(hospital) == first
    server.deleted = ["Patient/p1"]
    assert pull(hospital, server)["intake"]["deleted"] == 7
    assert taken_up_to(hospital) != first


def test_what_replaces_all_that_was_held_moves_on(hospital: Hospital, server: BulkServer) -> None:
    pull(hospital, server)
    first, server.deleted = taken_up_to(hospital), [ODD]
    pull(hospital, server)
    assert taken_up_to(hospital) == first
    assert pull(hospital, server, "--replace")["pulled"]["unreadable"] == 1
    assert taken_up_to(hospital) != first


def test_a_first_pull_whose_list_is_odd_is_everything_again_the_next_time(
    hospital: Hospital, server: BulkServer
) -> None:
    server.deleted = [ODD]
    assert pull(hospital, server)["intake"]["accepted"] == 35
    assert taken_up_to(hospital) is None
    server.deleted = []
    assert pull(hospital, server)["intake"]["duplicate"] == 35
    assert taken_up_to(hospital) is not None


def test_a_history_with_odd_entries_is_read_as_far_as_it_goes(hospital: Hospital, server: BulkServer) -> None:
    how = {"mode": "search", "deletions": "history"}
    pull(hospital, server, **how)
    first = taken_up_to(hospital)
    server.history = {
        "Patient": [
            deletion("Patient/p1", "204 No Content"),
            {"request": {"method": "PUT", "url": "Patient/p2"}, "resource": {"resourceType": "Patient"}},
            {"resource": {"resourceType": "Patient", "id": "p3"}},
        ],
        "Observation": [{"fullUrl": f"{server.base}/Observation/o2"}, {"request": "DELETE"}, deletion("o4", None)],
    }
    done = pull(hospital, server, **how)
    assert (done["pulled"]["deleted"], done["pulled"]["unreadable"], done["intake"]["deleted"]) == (1, 3, 7)
    assert taken_up_to(hospital) == first
    server.history["Observation"] = []
    assert first is not None
    while datetime.now(UTC) < first + timedelta(seconds=3):  # a search is dated by the server's Date, to a second or so
        time.sleep(0.05)
    assert pull(hospital, server, **how)["pulled"]["unreadable"] == 0
    assert taken_up_to(hospital) != first


def test_a_page_of_a_search_may_say_nothing_usable_of_how_it_found_a_resource(
    hospital: Hospital, server: BulkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def odd(content: dict[str, Any], *rest: Any, **more: Any) -> Any:
        for entry in content.get("entry", [])[:-1]:
            entry["search"] = "match"
        return JSONResponse(content, *rest, **more)

    monkeypatch.setattr("kit.bulk_data_server.JSONResponse", odd)
    assert pull(hospital, server, mode="search")["intake"]["accepted"] == 35


def test_the_source_says_that_deletions_could_not_be_read(hospital: Hospital, server: BulkServer) -> None:
    vht_node("source-add", hospital.state, write(hospital, server))
    vht_node("source-run", hospital.state, "ehr")
    server.deleted = [ODD, "Patient/p1", entry_of_nothing := {"request": None}]
    description = vht_node("source-run", hospital.state, "ehr")
    assert (description["error"], description["failures"], description["runs"][0]["unreadable"]) == (None, 0, 2)
    assert description["runs"][1]["unreadable"] == 0
    with hospital.open() as node:
        node.accounts.add("Vera", "viewer", "battery staple")
        browser = AppClient(internal_app(node))
        browser.post("/login", data={"name": "Vera", "password": "battery staple"})
        page = browser.get("/sources").text
        assert "2 listed deletions could not be read" in page
        assert "2 unreadable deletions" in page
    server.deleted.remove(entry_of_nothing)
    server.deleted.remove(ODD)
    vht_node("source-run", hospital.state, "ehr")
    with hospital.open() as node:
        browser = AppClient(internal_app(node))
        browser.post("/login", data={"name": "Vera", "password": "battery staple"})
        assert "could not be read" not in browser.get("/sources").text


def test_the_table_of_pulls_counts_them() -> None:
    run = {"ended_at": NEW, "asked_by": None, "since": OLD, "lines": 1, "code": None, "counts": {"deleted": 1}}
    console = Console(file=StringIO(), width=200)
    console.print(source_tables({"name": "ehr", "error": None, "runs": [{**run, "unreadable": 3}]})[1])
    assert "1 deleted, 3 unreadable deletions" in console.file.getvalue()  # type: ignore[attr-defined]
