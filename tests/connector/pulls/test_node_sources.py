"""Installed sources: a running node pulls them by itself, one at a time, through errors, kills and restarts."""

import os
import re
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest
import tomli_w
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from kit.bulk_data_server import BulkServer
from kit.commands import vht_node
from kit.fhir_resources import observation, patient
from kit.hospital import Hospital, await_that

from connector.fhir import Store
from connector.fhir.sources import pulling
from connector.governance.operator_accounts import Actor
from connector.listeners.internal import internal_app
from connector.node import Node
from connector.pulls.installed_sources import Source, Sources
from connector.pulls.pull_history import PullStatus, Run
from connector.pulls.schedule import Schedule
from vht_federate.errors import InputError, NotFoundError, UnavailableError, VhtError
from vht_federate.testing.asgi import AppClient
from vht_federate.testing.clock import FixedClock

OLD, NEW = "2020-01-01T00:00:00+00:00", "2040-01-01T00:00:00+00:00"
LONG_S = 300.0
ADA = Actor("Dr Ada", "approver", "account")
Serve = Callable[..., BulkServer]


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as stack:

        def start(observations: int = 30, **behaviour: Any) -> BulkServer:
            meta = {"meta": {"lastUpdated": OLD}}
            resources = {
                "Patient": [patient(number, **meta) for number in range(5)],
                "Observation": [observation(f"o{number}", number % 5, **meta) for number in range(observations)],
            }
            return stack.enter_context(BulkServer(resources, polls=0, **behaviour).running())

        yield start


def write(hospital: Hospital, server: BulkServer, **changes: Any) -> Path:
    path = hospital.root / "ehr.toml"
    fields = {"name": "ehr", "base_url": server.base, "types": ["Patient", "Observation"], "attempts": 2}
    path.write_text(tomli_w.dumps(fields | changes))
    return path


def install(hospital: Hospital, server: BulkServer, **changes: Any) -> Source:
    return Sources(hospital.state / "sources").add(write(hospital, server, **changes))


def ended(source: Source, runs: int) -> Run:
    """The newest run, when there are so many and none goes on."""
    await_that(lambda: len(source.standing.runs) >= runs and source.standing.begun_at is None, LONG_S)
    return source.standing.runs[0]


def counts(hospital: Hospital) -> dict[str, int]:
    current = Store(hospital.state / "fhir").current()
    return {kind: count for kind, count in (current.counts() if current else {}).items() if count}


def ingested(hospital: Hospital) -> list[dict[str, Any]]:
    return [entry["body"] for entry in hospital.log() if entry["kind"] == "dataset.ingested"]


# --- installed ------------------------------------------------------------------------------------------------------


def test_a_source_is_installed_whole_listed_replaced_and_removed(hospital: Hospital, serve: Serve) -> None:
    key = hospital.root / "secret.pem"
    private = ec.generate_private_key(ec.SECP384R1())
    key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    given = {"authorization": {"client_id": "c", "key": "secret.pem"}, "ca": str(hospital.tls.ca), "every": "6h"}
    file = write(hospital, serve(), **given)
    description = vht_node("source-add", hospital.state, file)
    assert (description["name"], description["state"], description["every"], description["error"]) == (
        "ehr",
        "waiting",
        "6h",
        None,
    )
    key.unlink()
    home = hospital.state / "sources" / "ehr"
    settings = Source(home).settings
    assert settings.authorization is not None
    assert (settings.authorization.key, settings.ca, settings.every_s) == (home / "source.key", home / "ca.pem", 21600)
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in home.iterdir() if path.name != "lock")
    assert vht_node("sources", hospital.state)["sources"] == [vht_node("source-show", hospital.state, "ehr")]
    assert vht_node("status", hospital.state)["sources"][0]["name"] == "ehr"
    vht_node("source-add", hospital.state, write(hospital, serve(), every="15m"))
    assert vht_node("source-show", hospital.state, "ehr")["every"] == "15m"
    assert vht_node("source-remove", hospital.state, "ehr") == {"removed": "ehr"}
    assert not home.exists()
    for command in ("source-show", "source-remove", "source-run"):
        with pytest.raises(InputError) as caught:
            vht_node(command, hospital.state, "ehr")
        assert caught.value.code == "VHT-INPUT-NOT-FOUND"


@pytest.mark.parametrize("every", ["0m", "5", "-1h", "1w", "six hours"])
def test_an_interval_that_is_none_is_refused(hospital: Hospital, serve: Serve, every: str) -> None:
    with pytest.raises(InputError, match="every"):
        install(hospital, serve(), every=every)


def test_a_source_that_is_being_pulled_is_neither_changed_nor_removed(hospital: Hospital, serve: Serve) -> None:
    server = serve()
    source = install(hospital, server)
    with pulling(source.home):
        for change in (lambda: install(hospital, server), lambda: Sources(source.home.parent).remove("ehr")):
            with pytest.raises(UnavailableError) as caught:
                change()
            assert caught.value.code == "VHT-UNAVAILABLE-SOURCE-BUSY"


def test_a_file_that_was_broken_by_hand_is_shown_as_unusable(hospital: Hospital, serve: Serve) -> None:
    source = install(hospital, serve())
    (source.home / "source.toml").write_text("name = ")
    description = vht_node("source-show", hospital.state, "ehr")
    assert (description["state"], description["error"]["code"]) == ("unusable", "VHT-INPUT-SOURCE")


def test_after_failures_the_next_try_comes_later_each_time_but_never_later_than_the_interval() -> None:
    clock, standing, waits = FixedClock(), PullStatus(), []
    for _ in range(8):
        run = Run(begun_at=clock(), ended_at=clock(), code="VHT-UNAVAILABLE-SOURCE", message="m")
        standing = standing.ended(run, every_s=3600.0, retry_s=60.0)
        assert standing.next_at is not None
        waits.append((standing.next_at - clock()).total_seconds())
    assert waits == [60, 120, 240, 480, 960, 1920, 3600, 3600]
    good = standing.ended(Run(begun_at=clock(), ended_at=clock()), every_s=3600.0, retry_s=60.0)
    assert (good.failures, good.next_at, good.succeeded_at) == (0, clock() + timedelta(hours=1), clock())
    assert standing.ended(Run(begun_at=clock(), ended_at=clock(), code="X"), every_s=None, retry_s=1.0).next_at is None


# --- pulled ---------------------------------------------------------------------------------------------------------


def test_a_node_at_rest_pulls_when_asked_and_logs_what_was_taken_in(hospital: Hospital, serve: Serve) -> None:
    server = serve()
    install(hospital, server)
    description = vht_node("source-run", hospital.state, "ehr")
    assert (description["state"], description["runs"][0]["lines"], description["runs"][0]["counts"]["accepted"]) == (
        "on request",
        35,
        35,
    )
    assert description["runs"][0]["asked_by"]
    server.resources["Observation"].append(observation("late", 2, meta={"lastUpdated": NEW}))
    server.deleted.append("Patient/p1")
    again = vht_node("source-run", hospital.state, "ehr")["runs"][0]
    assert (again["lines"], again["counts"]["accepted"], again["counts"]["deleted"]) == (1, 1, 7)
    assert counts(hospital) == {"Patient": 4, "Observation": 25}
    assert [(body["source"], body["accepted"], body["deleted"]) for body in ingested(hospital)] == [
        ("ehr", 35, 0),
        ("ehr", 1, 7),
    ]


def test_a_pull_of_a_file_honours_deletions_too(hospital: Hospital, serve: Serve) -> None:
    server = serve()
    vht_node("pull", hospital.state, "--from", write(hospital, server))
    server.deleted.append("Observation/o3")
    done = vht_node("pull", hospital.state, "--from", write(hospital, server))
    assert (done["pulled"]["files"], done["pulled"]["deleted"], done["intake"]["deleted"]) == (0, 1, 1)
    assert counts(hospital)["Observation"] == 29


def test_a_running_node_pulls_by_the_interval_and_takes_up_a_source_at_once(hospital: Hospital, serve: Serve) -> None:
    server = serve()
    with hospital.open() as node:
        source = install(hospital, server, every="1s")
        first = ended(source, 1)
        assert (first.code, first.asked_by, first.counts["accepted"]) == (None, None, 35)
        server.resources["Patient"].append(patient(99, meta={"lastUpdated": NEW}))
        await_that(lambda: sum(body["accepted"] for body in ingested(hospital)) == 36, LONG_S)
        assert node.status()["sources"][0]["every"] == "1s"
    bodies = ingested(hospital)
    assert {(body["source"], body["operator"], body["via"]) for body in bodies} == {("ehr", "schedule", "interval")}
    assert counts(hospital) == {"Patient": 6, "Observation": 30}


def test_a_server_that_fails_is_tried_again_and_its_error_is_shown(hospital: Hospital, serve: Serve) -> None:
    server = serve(fails=1)
    source = install(hospital, server, every="1s")
    node = Node(hospital.state)
    with node:
        node.start(enclaves=hospital.enclaves)
        await_that(lambda: source.standing.failures >= 1, LONG_S)
        description = source.described()
        assert description["error"] is None or description["error"]["code"] == "VHT-UNAVAILABLE-SOURCE-JOB"
        await_that(lambda: counts(hospital) == {"Patient": 5, "Observation": 30}, LONG_S)
        await_that(lambda: source.standing.failures == 0, LONG_S)
    codes = {run.code for run in source.standing.runs}
    assert "VHT-UNAVAILABLE-SOURCE-JOB" in codes
    assert None in codes


def test_a_pull_never_holds_up_the_console_and_another_of_the_same_source_is_refused(
    hospital: Hospital, serve: Serve
) -> None:
    server = serve(observations=2000, stall=("Observation", 200_000))
    source = install(hospital, server)
    with hospital.open() as node:
        browser = AppClient(internal_app(node))
        token = (hospital.state / "operator.token").read_text().strip()
        bearer = {"Authorization": f"Bearer {token}"}
        response = browser.post("/api/sources/ehr/run", json={}, headers=bearer)
        assert response.json() == {"source": "ehr", "asked": True}
        assert server.stalled.wait(LONG_S)
        description = browser.get("/api/sources", headers=bearer).json()["sources"][0]
        assert (description["running"], description["state"]) == (True, "downloading")
        assert browser.get("/api/status", headers=bearer).json()["sources"][0]["running"]
        refused = browser.post("/api/sources/ehr/run", json={}, headers=bearer)
        assert refused.json()["error"]["code"] == "VHT-UNAVAILABLE-SOURCE-BUSY"
        server.resume.set()
        assert ended(source, 1).counts["accepted"] == 2005


@pytest.mark.faults
def test_a_node_stopped_in_mid_pull_leaves_no_process_and_goes_on_at_its_next_start(
    hospital: Hospital, serve: Serve
) -> None:
    server = serve(observations=2000, stall=("Observation", 400_000))
    source = install(hospital, server)
    with hospital.open() as node:
        node.pulls.ask("ehr", ADA)
        assert server.stalled.wait(LONG_S)
        assert workers(source)
    assert not workers(source)
    assert source.standing.begun_at is not None
    server.resume.set()
    server.stall = None
    with hospital.open():
        run = ended(source, 1)
    assert (run.code, run.resumed, run.counts["accepted"]) == (None, True, 2005)
    assert len(server.jobs) == 0  # one export, released when it was taken in
    assert len(server.downloads("Patient")) == 1


@pytest.mark.faults
def test_a_worker_that_is_killed_is_noted_and_the_next_pull_goes_on(hospital: Hospital, serve: Serve) -> None:
    server = serve(observations=2000, stall=("Observation", 400_000))
    source = install(hospital, server)
    with hospital.open() as node:
        node.pulls.ask("ehr", ADA)
        assert server.stalled.wait(LONG_S)
        for process in workers(source):
            os.kill(process.pid, signal.SIGKILL)
        assert ended(source, 1).code == "VHT-UNAVAILABLE-SOURCE-PULL"
        await_that(lambda: not node.pulls.described()[0]["running"], LONG_S)
        server.resume.set()
        server.stall = None
        node.pulls.ask("ehr", ADA)
        run = ended(source, 2)
    assert (run.code, run.resumed, run.asked_by, run.counts["accepted"]) == (None, True, "Dr Ada", 2005)


def workers(source: Source) -> list[psutil.Process]:
    name = str(source.home.parent.parent)
    processes = []
    for process in psutil.Process().children(recursive=True):
        try:
            if "connector.pulls.worker" in process.cmdline() and name in process.cmdline():
                processes.append(process)
        except psutil.NoSuchProcess:
            continue
    return processes


def test_an_intake_that_was_not_recorded_is_not_settled_and_comes_again(hospital: Hospital, serve: Serve) -> None:
    server = serve()
    source = install(hospital, server)
    reports: list[dict[str, Any]] = []

    def record(report: dict[str, Any], **_: Any) -> None:
        reports.append(report)
        if len(reports) == 1:
            raise UnavailableError("the books are shut", code="VHT-UNAVAILABLE-STORE")

    schedule = Schedule(hospital.state, record, FixedClock())
    try:
        assert schedule.run("ehr", ADA)["error"] is not None
        again = schedule.run("ehr", ADA)
    finally:
        schedule.close()
    assert (again["error"], again["runs"][0]["resumed"]) == (None, True)
    assert [report["accepted"] for report in reports] == [35, 0]
    assert [report["duplicate"] for report in reports] == [0, 35]
    assert source.standing.failures == 0


def test_the_page_shows_each_source_and_its_button_needs_an_approver_and_the_session_s_key(
    hospital: Hospital, serve: Serve
) -> None:
    server = serve()
    source = install(hospital, server)
    with hospital.open() as node:
        node.accounts.add("Dr Ada", "approver", "correct horse")
        node.accounts.add("Vera", "viewer", "battery staple")
        browser = AppClient(internal_app(node))
        assert browser.get("/sources").headers["location"] == "/login"
        browser.post("/login", data={"name": "Vera", "password": "battery staple"})
        page = browser.get("/sources").text
        assert "Pull now" not in page
        assert server.base in page
        key = re.search(r'name="form_key" value="([^"]+)"', page)
        assert key
        assert browser.post("/sources/ehr/run", data={"form_key": key[1]}).status_code == 403
        browser.post("/login", data={"name": "Dr Ada", "password": "correct horse"})
        assert browser.post("/sources/ehr/run", data={"form_key": key[1]}).status_code == 403
        key = re.search(r'name="form_key" value="([^"]+)"', browser.get("/sources").text)
        assert key
        assert not source.standing.runs
        assert browser.post("/sources/ehr/run", data={"form_key": key[1]}).headers["location"] == "/sources"
        assert ended(source, 1).asked_by == "Dr Ada"
        shown = browser.get("/sources").text
        assert "35 accepted" in shown
        assert browser.get("/sources").headers["refresh"] == "10"
    assert ingested(hospital)[0]["operator"] == "Dr Ada"


def test_asking_for_what_is_not_installed_is_a_typed_error(hospital: Hospital) -> None:
    with hospital.open() as node, pytest.raises(NotFoundError):
        node.pulls.ask("nowhere", ADA)


def test_a_failed_pull_ends_the_command_with_its_code(hospital: Hospital, serve: Serve) -> None:
    install(hospital, serve(fails=1))
    with pytest.raises(VhtError) as caught:
        vht_node("source-run", hospital.state, "ehr")
    assert caught.value.code == "VHT-UNAVAILABLE-SOURCE-JOB"
