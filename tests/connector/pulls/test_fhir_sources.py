"""FHIR servers as sources: every byte arrives once, whatever breaks on the way, and nothing leads elsewhere."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st
from kit.bulk_data_server import BulkServer
from kit.commands import vht_node
from kit.fhir_resources import KEY, observation, patient
from kit.hospital import Hospital, await_that

from connector.fhir import ingest
from connector.fhir.sources import (
    Pulled,
    SourceSettings,
    allowed_origins,
    download,
    downloaded_files,
    pulling,
    settle_pull,
)
from connector.fhir.sources.bulk_export import fhir_instant
from connector.fhir.sources.retry import Pace, retry_after_s
from connector.fhir.sources.smart_auth import BackendKey
from vht_federate.errors import InputError, RefusedError, UnavailableError

OLD, NEW = "2020-01-01T00:00:00+00:00", "2040-01-01T00:00:00+00:00"
Serve = Callable[..., BulkServer]


def held(patients: int = 5, observations: int = 300) -> dict[str, list[dict[str, Any]]]:
    meta = {"meta": {"lastUpdated": OLD}}
    return {
        "Patient": [patient(number, **meta) for number in range(patients)],
        "Observation": [observation(f"o{number}", number % patients, **meta) for number in range(observations)],
    }


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as stack:

        def start(resources: dict[str, list[dict[str, Any]]] | None = None, **behaviour: Any) -> BulkServer:
            server = BulkServer(held() if resources is None else resources, **behaviour)
            running: AbstractContextManager[BulkServer] = server.running()
            return stack.enter_context(running)

        yield start


def source(server: BulkServer, **changes: Any) -> SourceSettings:
    fields = {"name": "ehr", "base_url": server.base, "types": ("Patient", "Observation")}
    return SourceSettings.model_validate(fields | changes)


def quick(waits: list[float] | None = None, deadline_s: float = 600.0) -> Pace:
    """A pace that does not wait, and remembers how long it would have."""
    return Pace(deadline_s, sleep=(waits if waits is not None else []).append, jitter=lambda: 0.5)


def pull(settings: SourceSettings, home: Path, **more: Any) -> Pulled:
    with pulling(home):
        return download(settings, home, pace=more.pop("pace", quick()), **more)


def resources(pulled: Pulled) -> list[tuple[str, str]]:
    lines = [line for path in sorted(pulled.folder.iterdir()) for line in path.read_bytes().splitlines()]
    return sorted((one["resourceType"], one["id"]) for one in map(json.loads, lines))


def everything(server: BulkServer) -> list[tuple[str, str]]:
    return sorted((kind, one["id"]) for kind, several in server.resources.items() for one in several)


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
    asked = [headers.get("range") for headers in server.downloads("Observation")]
    if ranges:
        assert len(asked) == 4
        assert all(one is not None for one in asked[1:])
        assert server.served["Observation-0"] < size + 5 * 65536
    else:
        assert asked == [None] * 4


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


ELSEWHERE = [
    "http://169.254.169.254/latest/meta-data",
    "http://127.0.0.1:1/files/Patient",
    "file:///etc/passwd",
    "https://user:secret@127.0.0.1/x",
    "gopher://127.0.0.1/x",
    "http://127.0.0.1\\@evil/x",
    "//evil.example/files",
]


@pytest.mark.parametrize("url", ELSEWHERE)
def test_a_manifest_that_leads_elsewhere_is_refused(serve: Serve, tmp_path: Path, url: str) -> None:
    server = serve(manifest_changes={"output": [{"type": "Patient", "url": url}]})
    with pytest.raises(RefusedError) as caught:
        pull(source(server), tmp_path)
    assert caught.value.code == "VHT-REFUSED-SOURCE-ADDRESS"
    assert "evil" not in caught.value.message


def test_an_origin_that_is_listed_may_serve_the_files_without_our_token_unless_it_must_have_it(
    serve: Serve, tmp_path: Path
) -> None:
    key, jwk = write_key(tmp_path / "key.pem", ec.generate_private_key(ec.SECP384R1()))
    other = serve()
    for requires in (True, False):
        listed = {"output": [{"type": "Patient", "url": f"{other.origin}/files/Patient"}]}
        server = serve(public_jwk=jwk, manifest_changes={**listed, "requiresAccessToken": requires})
        settings = source(server, allowed_origins=(other.origin,), authorization={"client_id": "client-1", "key": key})
        assert pull(settings, tmp_path / str(requires)).lines == 5
        assert ("authorization" in other.downloads("Patient")[-1]) is requires


def test_a_redirect_is_followed_only_where_it_may_lead(serve: Serve, tmp_path: Path) -> None:
    server = serve()
    server.manifest_changes = {"output": [{"type": "Patient", "url": f"{server.origin}/files/Patient/"}]}
    assert pull(source(server), tmp_path).lines == 5  # the trailing slash is redirected
    assert any(url.endswith("/files/Patient/") for _, url, _ in server.asked)


def test_what_is_no_ndjson_is_not_kept(serve: Serve, tmp_path: Path) -> None:
    server = serve({"Patient": []}, padding=b"<Bundle xmlns='http://hl7.org/fhir'/>")
    server.manifest_changes = {"output": [{"type": "Patient", "url": f"{server.origin}/files/Patient"}]}
    with pytest.raises(UnavailableError, match="no NDJSON"):
        pull(source(server), tmp_path)


@pytest.mark.parametrize(
    "changes",
    [{"transactionTime": None}, {"output": "all"}, {"link": [{"relation": "next", "url": "/fhir/Patient?_count=1"}]}],
)
def test_a_manifest_that_cannot_be_read_is_a_typed_error(serve: Serve, tmp_path: Path, changes: dict[str, Any]) -> None:
    server = serve(manifest_changes=changes)
    with pytest.raises(UnavailableError) as caught:
        pull(source(server), tmp_path)
    assert caught.value.code == "VHT-UNAVAILABLE-SOURCE-ANSWER"


def test_more_than_was_allowed_is_not_written(serve: Serve, tmp_path: Path) -> None:
    for mode in ("export", "search"):
        with pytest.raises(UnavailableError) as caught:
            pull(source(serve(), mode=mode, maximum_bytes=30_000), tmp_path / mode)
        assert caught.value.code == "VHT-UNAVAILABLE-SOURCE-SIZE"
        written = sum(path.stat().st_size for path in (tmp_path / mode / "run" / "data").iterdir())
        assert written <= 30_000


def write_key(path: Path, private: Any) -> tuple[str, dict[str, Any]]:
    path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return str(path), BackendKey.read(path).jwk


@pytest.mark.parametrize("kind", ["ES384", "RS384"])
def test_a_server_with_smart_backend_services_lets_us_in(serve: Serve, tmp_path: Path, kind: str) -> None:
    private = ec.generate_private_key(ec.SECP384R1()) if kind == "ES384" else rsa.generate_private_key(65537, 2048)
    key, jwk = write_key(tmp_path / "key.pem", private)
    assert jwk["alg"] == kind
    assert not {"d", "p", "q"} & jwk.keys()
    server = serve(public_jwk=jwk)
    settings = source(server, authorization={"client_id": "client-1", "key": key})
    assert pull(settings, tmp_path / "home").lines == 305
    assert len(server.tokens) == 1
    wrong = settings.model_copy(
        update={"authorization": settings.authorization.model_copy(update={"client_id": "client-2"})}  # type: ignore[union-attr]
    )
    with pytest.raises(UnavailableError, match="400 invalid_client") as caught:
        pull(wrong, tmp_path / "other")
    assert caught.value.code == "VHT-UNAVAILABLE-SOURCE-TOKEN"


def test_a_token_that_expired_in_the_middle_is_renewed_with_a_new_assertion(serve: Serve, tmp_path: Path) -> None:
    key, jwk = write_key(tmp_path / "key.pem", ec.generate_private_key(ec.SECP384R1()))
    server = serve(public_jwk=jwk, files=4)
    settings = source(server, authorization={"client_id": "client-1", "key": key})

    def expire(_: float) -> None:
        server.tokens.clear()

    pulled = pull(settings, tmp_path / "home", pace=Pace(60.0, sleep=expire))
    assert pulled.lines == 305
    assert len(server.jtis) == 3


ENDLESS = ["/fhir/.well-known/smart-configuration", "/token", "/fhir/Patient/$export", "/fhir/Patient"]


def endless(serve: Serve, tmp_path: Path, path: str, **behaviour: Any) -> tuple[BulkServer, SourceSettings]:
    """A server whose answer at ``path`` does not end, and a source that comes by there."""
    key, jwk = write_key(tmp_path / "key.pem", ec.generate_private_key(ec.SECP384R1()))
    server = serve(public_jwk=jwk, endless=path, **behaviour)
    mode = "search" if path == "/fhir/Patient" else "export"
    authorization = {"client_id": "client-1", "key": key}
    return server, source(server, authorization=authorization, mode=mode, level="patient")


@pytest.mark.parametrize("path", ENDLESS)
def test_an_answer_larger_than_any_of_its_kind_is_not_read_to_its_end(
    serve: Serve, tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connector.fhir.sources.http_client.ANSWER_LIMIT", 1 << 20)
    server, settings = endless(serve, tmp_path, path)
    with pytest.raises(UnavailableError) as caught:
        pull(settings, tmp_path / "home", pace=quick(deadline_s=600.0))
    assert caught.value.code == "VHT-UNAVAILABLE-SOURCE-ANSWER"
    assert server.served["endless"] < 32 << 20, "what left the server: the limit, and what the sockets hold"


@pytest.mark.parametrize("path", ENDLESS)
def test_an_answer_that_drips_ends_at_the_deadline(serve: Serve, tmp_path: Path, path: str) -> None:
    server, settings = endless(serve, tmp_path, path, piece=1, drip_s=0.01)
    now = [0.0]

    def clock() -> float:
        now[0] += 1.0 if server.served.get("endless") else 0.0
        return now[0]

    with pytest.raises(UnavailableError) as caught:
        pull(settings, tmp_path / "home", pace=Pace(20.0, clock=clock, sleep=lambda _: None))
    assert caught.value.code == "VHT-UNAVAILABLE-SOURCE-DEADLINE"
    assert server.served["endless"] < 65536


def test_an_answer_that_is_not_in_its_encoding_is_a_typed_error(serve: Serve, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError) as caught:
        pull(source(serve(encoding="gzip"), mode="search"), tmp_path)
    assert caught.value.code == "VHT-UNAVAILABLE-SOURCE-ANSWER"


def test_keys_that_sign_neither_rs384_nor_es384_are_refused(tmp_path: Path) -> None:
    for private in (ec.generate_private_key(ec.SECP256R1()), rsa.generate_private_key(65537, 1024)):  # noqa: S505
        with pytest.raises(InputError) as caught:
            write_key(tmp_path / "key.pem", private)
        assert caught.value.code == "VHT-INPUT-SOURCE-KEY"


CLIENT = """
import sys; from pathlib import Path; from connector.fhir.sources import SourceSettings, download, downloaded_files, pulling
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
    one = allowed_origins.Guard("https://h:443", frozenset({"https://h:443"}))
    for url in (text, f"https://{text}", f"https://h{text}", f"//{text}"):
        try:
            found = one.check(url, seen_at="https://h/fhir/x")
        except RefusedError:
            continue
        assert allowed_origins.origin_of(found) == "https://h:443"


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
