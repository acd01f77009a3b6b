"""Bulk Data at the node: both dialects give what searches give; whoever may not, at any moment, gets nothing."""

import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from kit.fhir_api_client import Program, events, serving
from kit.hospital import Hospital, await_that

from connector.fhir_api.limits import Limits
from connector.fhir_api.service import WORKING, local_api

KINDS = ("Patient", "Observation", "Condition")


@pytest.fixture(autouse=True)
def _no_job_left(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "program" in request.fixturenames:
        exports = request.getfixturevalue("program").node.fhir_api.exports
        for job in list(exports._jobs.values()):
            exports.cancel(job.access, job.id)


def by_id(resources: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {resource["id"]: resource for resource in resources}


def parameters(*parts: tuple[str, str]) -> dict[str, Any]:
    return {"resourceType": "Parameters", "parameter": [{"name": name, "valueString": value} for name, value in parts]}


@pytest.mark.parametrize("level", ["$export", "Patient/$export"])
def test_both_dialects_give_what_searches_give(program: Program, level: str) -> None:
    token = program.token()
    expected = {kind: by_id(program.search(kind, token)) for kind in KINDS}
    posted = {"method": "POST", "json": parameters(("_type", "Patient"), ("_type", "Observation,Condition"))}
    for kickoff in (program.export(level, token), program.export(level, token, **posted)):
        answer = program.await_export(kickoff, token)
        manifest = answer.json()
        assert answer.headers["expires"]
        assert manifest["requiresAccessToken"] is True
        downloads = program.download(manifest, token)
        assert {kind: by_id(lines) for kind, lines in downloads.items()} == expected
        assert program.call("DELETE", urlsplit(kickoff.headers["Content-Location"]).path, token).status_code == 202
    assert datetime.fromisoformat(manifest["transactionTime"])


def test_types_and_the_tokens_scope_bound_an_export(program: Program) -> None:
    token = program.token("system/Patient.rs system/Condition.rs")
    manifest = program.await_export(program.export(token=token), token).json()
    assert {output["type"] for output in manifest["output"]} == {"Patient", "Condition"}
    assert program.export("$export?_type=Observation", token).status_code == 403
    full_token = program.token()
    narrow = program.await_export(program.export("$export?_type=Observation", full_token), full_token).json()
    assert {output["type"] for output in narrow["output"]} == {"Observation"}
    address = urlsplit(narrow["output"][0]["url"]).path
    assert program.call("GET", address, token).status_code == 404


def test_since_is_refused_and_says_why(program: Program) -> None:
    posted = {"method": "POST", "json": parameters(("_since", "2020-01-01T00:00:00Z"))}
    for answer in (program.export("$export?_since=2020-01-01T00:00:00Z"), program.export(**posted)):
        assert answer.status_code == 400
        [issue] = answer.json()["issue"]
        assert (issue["code"], issue["details"]["text"]) == ("not-supported", "VHT-INPUT-SINCE")
        assert "true dates" in issue["diagnostics"]
    assert program.node.fhir_api.exports._jobs == {}


@pytest.mark.parametrize(
    "path",
    ["$export?_typeFilter=Observation%3Fcode%3D1", "$export?_outputFormat=text/csv", "$export?_since=yesterday",
     "$export?_type=Practitioner", "$export?patient=Zebedee"],
)  # fmt: skip
def test_what_is_not_understood_begins_nothing(program: Program, path: str) -> None:
    answer = program.export(path)
    assert answer.status_code == 400
    assert answer.json()["resourceType"] == "OperationOutcome"
    assert "Zebedee" not in answer.text
    assert program.call("POST", "/fhir/$export", headers={"Prefer": "respond-async"}, content=b"[]").status_code == 400
    assert program.get("$export").status_code == 400  # not asked for asynchronously


def test_another_clients_export_and_other_files_do_not_exist(program: Program, home: Hospital) -> None:
    token = program.token()
    kickoff = program.export(token=token)
    manifest = program.await_export(kickoff, token).json()
    other = Program(program.node, program.web).register(home.permit())
    stranger = other.token()
    status = urlsplit(kickoff.headers["Content-Location"]).path
    address = urlsplit(manifest["output"][0]["url"]).path
    for method, path in (("GET", status), ("DELETE", status), ("GET", address)):
        assert other.call(method, path, stranger).status_code == 404
        assert other.web.request(method, path).status_code == 401
    folder = address.rpartition("/")[0]
    secret = "node.secret"
    for name in (secret, f"../{secret}", f"..%2f..%2f..%2f{secret}", f"%2e%2e/%2e%2e/{secret}",
                 "Patient.0001.ndjson%00", "/etc/passwd", "%2fetc%2fpasswd", ".", "Patient.0002.ndjson"):  # fmt: skip
        answer = program.call("GET", f"{folder}/{name}", token)
        assert answer.status_code in (404, 405), name
    assert program.call("GET", address, token).status_code == 200


def test_files_are_private_and_go_when_they_are_deleted(program: Program, home: Hospital) -> None:
    token = program.token()
    kickoff = program.export(token=token)
    manifest = program.await_export(kickoff, token).json()
    files = list((home.state / WORKING / "exports").rglob("*.ndjson"))
    assert len(files) == len(manifest["output"])
    assert program.call("DELETE", urlsplit(kickoff.headers["Content-Location"]).path, token).status_code == 202
    assert not any(path.exists() for path in files)
    assert program.call("GET", urlsplit(manifest["output"][0]["url"]).path, token).status_code == 404


def test_a_client_that_begins_too_many_waits(program: Program) -> None:
    token = program.token()
    answers = [program.export(token=token) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202, 202, 429]
    assert answers[2].headers["retry-after"]
    assert answers[2].json()["issue"][0]["code"] == "throttled"


def test_the_evidence_holds_rounded_counts_and_a_digest(program: Program, home: Hospital) -> None:
    token = program.token()
    program.await_export(program.export(token=token), token)
    [*_, entry] = [line for line in home.log() if line["kind"] == "fhir.exported"]
    assert entry["body"]["resources_rounded"]["Patient"] == 40
    assert entry["body"]["resources_rounded"]["Encounter"] is None
    assert len(entry["body"]["digest"]) == 64
    assert entry["permit_id"] == "permit-1"
    words = [event["subtype"][0]["display"] for event in events(program.node)]
    assert words[-1] == "export"


def test_nobody_who_opted_out_before_the_permit_is_exported(stocked: Hospital) -> None:
    with stocked.open(start=False) as node:
        node.opt_out("p1", since=datetime.fromisoformat("2020-01-01T00:00:00Z"))
    with serving(stocked) as program:
        token = program.token()
        downloads = program.download(program.await_export(program.export(token=token), token).json(), token)
        assert (len(downloads["Patient"]), len(downloads["Observation"])) == (39, 39)


def test_a_permit_revoked_in_the_middle_leaves_nothing(stocked: Hospital, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(stocked, permit_id="permit-7") as program:
        api, go, reached = program.node.fhir_api, threading.Event(), threading.Event()
        object.__setattr__(api.limits, "status_every_s", 0.0)
        everything = type(api.permit_views.view_for(api.clients.permit_of(api.clients.get(program.id)))).everything

        def slowly(*args: Any, **more: Any) -> Iterator[dict[str, Any]]:
            for number, resource in enumerate(everything(*args, **more)):
                if number == 5:
                    reached.set()
                    assert go.wait(300)
                yield resource

        monkeypatch.setattr("connector.fhir_api.permit_view.PermitView.everything", slowly)
        token = program.token()
        status = urlsplit(program.export(token=token).headers["Content-Location"]).path
        assert reached.wait(300)
        stocked.issuer.revoke("permit-7")
        go.set()
        [job] = api.exports._jobs.values()
        await_that(lambda: job.state == "failed")
        assert job.error is not None
        assert job.error.code == "VHT-PERMIT-REVOKED"
        answer = program.call("GET", status, token)
        assert answer.status_code == 403
        assert not list((stocked.state / WORKING / "exports").rglob("*.ndjson"))
        assert "fhir.exported" not in stocked.kinds()


def test_a_client_revoked_after_the_export_finds_no_files(stocked: Hospital) -> None:
    with serving(stocked) as program:
        token = program.token()
        manifest = program.await_export(program.export(token=token), token).json()
        operator = {"Authorization": f"Bearer {program.node.files.operator_token.read_text().strip()}"}
        program.web.post(f"/api/fhir-clients/{program.id}/revoke", headers=operator)
        assert program.call("GET", urlsplit(manifest["output"][0]["url"]).path, token).status_code == 401
        program.node.fhir_api.exports.sweep()
        assert not list((stocked.state / WORKING / "exports").rglob("*.ndjson"))


def test_nothing_of_an_export_outlives_its_process(stocked: Hospital) -> None:
    with serving(stocked) as program:
        token = program.token()
        kickoff = program.export(token=token)
        program.await_export(kickoff, token)
        key, ident = program.key, program.id
    assert not (stocked.state / WORKING / "exports").exists()
    leftover = stocked.state / WORKING / "exports" / "left"
    leftover.mkdir(parents=True)
    (leftover / "Patient.0001.ndjson").write_text("{}")
    with serving(stocked) as program:
        assert not leftover.exists()
        again = Program(program.node, program.web, key=key, id=ident)
        status = urlsplit(kickoff.headers["Content-Location"]).path
        assert again.call("GET", status).status_code == 404


def test_files_expire_and_the_access_log_is_bounded(stocked: Hospital) -> None:
    with serving(stocked) as program:
        node = program.node
        limits = Limits(keep_s=0, audit_file=4_000, audit_files=3, audit_days=0)
        small = local_api(node.settings, node.files, node.steps, node.visits.admission, limits=limits)
        access = node.fhir_api.tokens.access(program.token())
        small.exports.start()
        from connector.fhir_api.access_log import Event
        from connector.fhir_api.export_request import Kickoff

        job = small.exports.begin(access, "request", Kickoff(("Patient",)))
        await_that(lambda: job.state in ("done", "failed"))
        small.exports.sweep()
        assert (job.error, job.state, small.exports._jobs) == (None, "over", {})
        for number in range(40):
            small.audit.write(Event("read", "127.0.0.1", resource=f"Patient/{number}"))
        files = sorted((stocked.state / "access-log").glob("*"))
        assert len(files) == 3
        assert sum(path.stat().st_size for path in files) <= 12_000
        newest = next(iter(small.audit.events()))
        assert newest["entity"][0]["what"]["reference"] == "Patient/39"
        small.exports.close()


def test_one_file_holds_no_more_than_its_share(stocked: Hospital) -> None:
    with serving(stocked) as program:
        object.__setattr__(program.node.fhir_api.limits, "file_resources", 15)
        token = program.token()
        manifest = program.await_export(program.export("$export?_type=Patient", token), token).json()
        assert [output["count"] for output in manifest["output"]] == [15, 15, 10]
        patients = program.download(manifest, token)["Patient"]
        assert len(by_id(patients)) == 40
        lines = list(Path(stocked.state / WORKING).rglob("*.ndjson"))
        assert sum(len(path.read_text().splitlines()) for path in lines) == 40
