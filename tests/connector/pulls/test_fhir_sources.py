"""FHIR servers as sources: every byte arrives once, whatever breaks on the way, and nothing leads elsewhere."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st
from kit.bulk_data_server import BulkServer
from kit.bulk_pulls import NEW, Serve, everything, held, pull, quick, resources, source
from kit.commands import vht_node
from kit.fhir_resources import KEY, observation, patient
from kit.hospital import Hospital, await_that

from connector.fhir import ingest
from connector.fhir.sources import (
    SourceSettings,
    allowed_origins,
    downloaded_files,
    pulling,
    settle_pull,
)
from connector.fhir.sources.bulk_export import fhir_instant
from connector.fhir.sources.retry import retry_after_s
from vht_federate.errors import InputError, RefusedError, UnavailableError


@pytest.mark.parametrize("dialect", ["get", "post"])
def test_an_export_arrives_whole_in_either_dialect(serve: Serve, tmp_path: Path, dialect: str) -> None:
    server = serve(dialect=dialect, files=3, retry_after="120")
    waits: list[float] = []
    pulled = pull(source(server, dialect=dialect, longest_poll_s=7.0), tmp_path, pace=quick(waits, 1e9))
    assert resources(pulled) == everything(server)
    assert (pulled.files, pulled.lines, pulled.since, pulled.resumed) == (6, 305, None, False)
    assert waits == [7.0, 7.0]
    progress = json.loads((tmp_path / "run" / "progress.json").read_text())
    for piece in progress["pieces"]:
        content = (pulled.folder / piece["name"]).read_bytes()
        assert (piece["bytes"], piece["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_the_other_dialect_is_refused_in_words(serve: Serve, tmp_path: Path) -> None:
    server = serve(dialect="post")
    with pytest.raises(UnavailableError, match="405 to the kick-off") as caught:
        pull(source(server), tmp_path)
    assert caught.value.code == "VHT-UNAVAILABLE-SOURCE-REFUSED"


def test_a_search_gives_the_store_that_an_export_gives(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    reports = {}
    for mode in ("export", "search"):
        pulled = pull(source(server, mode=mode), tmp_path / mode)
        assert resources(pulled) == everything(server)
        reports[mode] = ingest(pulled.folder, tmp_path / "store", node_key=KEY, dataset="d")
    assert (reports["export"].accepted, reports["export"].quarantined) == (305, 0)
    assert (reports["search"].accepted, reports["search"].duplicate) == (0, 305)
    pages = [headers for method, url, headers in server.asked if "/fhir/Observation" in url]
    assert len(pages) == 15
    assert all(headers["cache-control"] == "no-cache" for headers in pages)


def test_only_what_changed_is_fetched_the_next_time(serve: Serve, tmp_path: Path) -> None:
    for mode in ("export", "search"):
        server, home = serve(deleted=["Patient/p7", "Observation/o9"] if mode == "export" else []), tmp_path / mode
        first = pull(source(server, mode=mode), home)
        assert first.deleted == len(server.deleted)
        settle_pull(source(server, mode=mode), home, first)
        assert not (home / "run").exists()
        server.resources["Observation"].append(observation("late", meta={"lastUpdated": NEW}))
        second = pull(source(server, mode=mode), home)
        assert resources(second) == [("Observation", "late")]
        assert second.since == first.transaction_time
        assert pull(source(server, mode=mode), home, whole=True).lines == 306


def test_a_search_drops_what_did_not_change_where_the_server_takes_no_notice(serve: Serve, tmp_path: Path) -> None:
    server = serve(ignores_since=True)
    settings = source(server, mode="search")
    settle_pull(settings, tmp_path, pull(settings, tmp_path))
    server.resources["Patient"].append(patient(99, meta={"lastUpdated": NEW}))
    assert resources(pull(settings, tmp_path)) == [("Patient", "p99")]


def test_since_is_said_as_a_filter_too_where_that_is_wanted(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    settings = source(server, level="patient", since_as_filter=True)
    settle_pull(settings, tmp_path, pull(settings, tmp_path))
    pull(settings, tmp_path)
    kick_offs = [url for _, url, _ in server.asked if "$export" in url]
    assert "_typeFilter" not in kick_offs[0]
    assert "_typeFilter=Patient%3F_lastUpdated%3Dge" in kick_offs[1]


def test_nothing_new_is_no_files(serve: Serve, tmp_path: Path) -> None:
    server = serve({"Patient": []})
    for mode in ("export", "search"):
        pulled = pull(source(server, mode=mode), tmp_path / mode)
        assert (pulled.files, list(pulled.folder.iterdir())) == (0, [])


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_breaks_goes_on_or_starts_again(serve: Serve, tmp_path: Path, ranges: bool) -> None:
    server = serve(ranges=ranges, cuts={"Observation": [8192, 16384, 4096]}, resources=held(5, 800))
    pulled = pull(source(server), tmp_path)
    assert resources(pulled) == everything(server)
    size = len(server.content("Observation", 0, None))
    range_headers = [headers.get("range") for headers in server.downloads("Observation")]
    if ranges:
        assert len(range_headers) == 4
        assert all(header is not None for header in range_headers[1:])
        assert server.served["Observation-0"] < size + 5 * 65536
    else:
        assert range_headers == [None] * 4


def test_a_download_that_never_gets_further_ends_with_a_typed_error(serve: Serve, tmp_path: Path) -> None:
    server = serve(cuts={"Patient": [0] * 50})
    with pytest.raises(UnavailableError) as caught:
        pull(source(server, attempts=4), tmp_path)
    assert caught.value.code == "VHT-UNAVAILABLE-SOURCE"
    assert len(server.downloads("Patient")) == 4
    server.cuts.clear()
    again = pull(source(server), tmp_path)
    assert again.resumed
    assert resources(again) == everything(server)


def test_a_file_shorter_than_its_count_is_not_taken_for_whole(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    listed = [{"type": "Patient", "url": f"{server.origin}/files/Patient", "count": 6}]
    server.manifest_changes = {"output": listed}
    with pytest.raises(UnavailableError, match="less than its manifest says"):
        pull(source(server, attempts=3), tmp_path)
    assert len(server.downloads("Patient")) == 3


def test_a_server_that_is_busy_is_asked_again_after_what_it_said(serve: Serve, tmp_path: Path) -> None:
    waits: list[float] = []
    pulled = pull(source(serve(busy=2, polls=0)), tmp_path, pace=quick(waits))
    assert pulled.lines == 305
    assert waits == [3.0, 3.0]


def test_the_deadline_ends_a_pull_that_can_go_on_later(serve: Serve, tmp_path: Path) -> None:
    server = serve(polls=3, retry_after="40")
    with pytest.raises(UnavailableError) as caught:
        pull(source(server), tmp_path, pace=quick(deadline_s=30.0))
    assert caught.value.code == "VHT-UNAVAILABLE-SOURCE-DEADLINE"
    assert pull(source(server), tmp_path).resumed
    assert len(server.jobs) == 1


def test_a_job_that_the_server_forgot_is_asked_for_again(serve: Serve, tmp_path: Path) -> None:
    server = serve(forgets=1)
    assert pull(source(server), tmp_path).lines == 305
    assert len(server.jobs) == 2
    with pytest.raises(UnavailableError, match="forgets its exports"):
        pull(source(serve(forgets=9)), tmp_path / "other")


def test_a_job_that_failed_is_over_and_the_next_pull_asks_anew(serve: Serve, tmp_path: Path) -> None:
    server = serve(fails=1)
    with pytest.raises(UnavailableError) as caught:
        pull(source(server), tmp_path)
    assert caught.value.code == "VHT-UNAVAILABLE-SOURCE-JOB"
    assert not pull(source(server), tmp_path).resumed
    assert len(server.jobs) == 2


def test_pages_that_ended_too_early_are_read_again_from_the_first(serve: Serve, tmp_path: Path) -> None:
    server = serve(expire_page="Observation")
    assert resources(pull(source(server, mode="search"), tmp_path)) == everything(server)


def test_another_question_does_not_go_on_with_the_old_answer(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    pull(source(server), tmp_path)
    pulled = pull(source(server, types=("Patient",)), tmp_path)
    assert (pulled.resumed, pulled.lines) == (False, 5)


def test_a_file_that_vanished_or_shrank_is_fetched_again(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    first = pull(source(server), tmp_path)
    victim = next(path for path in first.folder.iterdir() if "Patient" in path.name)
    victim.write_bytes(victim.read_bytes()[:-5])
    assert resources(pull(source(server), tmp_path)) == everything(server)


def test_two_pulls_of_one_source_do_not_mix(tmp_path: Path) -> None:
    with pulling(tmp_path), pytest.raises(UnavailableError) as caught, pulling(tmp_path):
        pass
    assert caught.value.code == "VHT-UNAVAILABLE-SOURCE-BUSY"


CLIENT = """
import sys
from pathlib import Path
from connector.fhir.sources import SourceSettings, download, downloaded_files, pulling
downloaded_files.SYNC_EVERY = 4096
home = Path(sys.argv[2])
with pulling(home):
    download(SourceSettings.read(Path(sys.argv[1])), home)
"""


def write_source(path: Path, server: BulkServer, **changes: Any) -> Path:
    fields = {"name": "ehr", "base_url": server.base, "types": ["Patient", "Observation"], "longest_poll_s": 0.05}
    path.write_text(tomli_w.dumps(fields | changes))
    return path


def noted(journal: Path) -> int:
    """Bytes that the journal knows to be on disk."""
    return sum(piece["bytes"] for piece in json.loads(journal.read_text())["pieces"])


def killed(server: BulkServer, toml: Path, home: Path) -> None:
    """Run a client until the server stalls, then kill it there."""
    client = subprocess.Popen([sys.executable, "-c", CLIENT, str(toml), str(home)])
    assert server.stalled.wait(300)
    await_that(lambda: noted(home / "run" / "progress.json") > 200_000)
    os.kill(client.pid, signal.SIGKILL)
    client.wait()
    server.resume.set()
    server.stall = None


@pytest.mark.faults
def test_a_client_killed_in_mid_download_goes_on_where_it_was(serve: Serve, tmp_path: Path) -> None:
    server = serve(held(5, 2000), stall=("Observation", 400_000))
    toml = write_source(tmp_path / "source.toml", server)
    killed(server, toml, tmp_path / "home")
    pulled = pull(SourceSettings.read(toml), tmp_path / "home")
    assert resources(pulled) == everything(server)
    assert pulled.resumed
    assert len(server.jobs) == 1
    assert len(server.downloads("Patient")) == 1
    begun = server.downloads("Observation")[1]["range"]
    assert int(begun.removeprefix("bytes=").removesuffix("-")) > 190_000


def test_a_server_restarted_in_mid_export_is_asked_anew(serve: Serve, tmp_path: Path) -> None:
    server = serve(held(5, 2000), stall=("Observation", 400_000))
    toml = write_source(tmp_path / "source.toml", server)
    killed(server, toml, tmp_path / "home")
    server.jobs.clear()
    server.gone = True
    assert resources(pull(SourceSettings.read(toml), tmp_path / "home")) == everything(server)
    assert len(server.downloads("Patient")) == 2


def test_the_command_pulls_takes_in_and_forgets_the_raw_data(serve: Serve, hospital: Hospital) -> None:
    server = serve()
    toml = write_source(hospital.root / "source.toml", server)
    first = vht_node("pull", hospital.state, "--from", toml)
    assert (first["pulled"]["lines"], first["intake"]["accepted"], first["intake"]["patients"]) == (305, 305, 5)
    assert {path.name for path in (hospital.state / "sources" / "ehr").iterdir()} == {"last.json", "lock"}
    second = vht_node("pull", hospital.state, "--from", toml)
    assert (second["pulled"]["files"], second["intake"]) == (0, None)
    full = vht_node("pull", hospital.state, "--from", toml, "--full")
    assert full["intake"]["duplicate"] == 305
    server.resources["Patient"] = server.resources["Patient"][:4]
    assert vht_node("pull", hospital.state, "--from", toml, "--replace")["intake"]["patients"] == 4
    assert server.jobs == {}, "the server was told that its files may go"


@pytest.mark.parametrize(
    "content",
    ["name = 'x'", "nonsense", "name='x'\nbase_url='ftp://h/'", "name='../x'\nbase_url='https://h/fhir'",
     "name='x'\nbase_url='https://h/fhir'\ntypes=['../Patient']", "name='x'\nbase_url='https://h/fhir'\nsecret='s'",
     "name='x'\nbase_url='https://h/fhir'\nlevel='group'"],
)  # fmt: skip
def test_a_source_file_that_does_not_fit_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "s.toml").write_text(content)
    with pytest.raises(InputError) as caught:
        SourceSettings.read(tmp_path / "s.toml")
    assert caught.value.code == "VHT-INPUT-SOURCE"


def test_plain_http_stays_on_this_machine(tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text("name='x'\nbase_url='http://fhir.hospital.example/r4'")
    with pytest.raises(RefusedError, match="not encrypted"):
        SourceSettings.read(tmp_path / "s.toml")


@given(st.text(max_size=40))
def test_an_address_is_either_of_a_listed_origin_or_refused(text: str) -> None:
    guard = allowed_origins.Guard("https://h:443", frozenset({"https://h:443"}))
    for url in (text, f"https://{text}", f"https://h{text}", f"//{text}"):
        try:
            address = guard.check(url, seen_at="https://h/fhir/x")
        except RefusedError:
            continue
        assert allowed_origins.origin_of(address) == "https://h:443"


def test_retry_after_is_seconds_or_a_date_or_nothing() -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    assert retry_after_s("7", now) == 7.0
    assert retry_after_s("Tue, 01 Jan 2030 00:01:00 GMT", now) == 60.0
    assert retry_after_s("Tue, 01 Jan 2019 00:01:00 GMT", now) == 0.0
    assert retry_after_s("soon", now) is retry_after_s(None, now) is None


def test_instants_are_spelled_as_fhir_wants_them() -> None:
    moment = datetime(2030, 1, 1, 5, tzinfo=UTC) + timedelta(milliseconds=5)
    assert fhir_instant(moment) == "2030-01-01T05:00:00.005Z"
    assert downloaded_files.SYNC_EVERY > 0
