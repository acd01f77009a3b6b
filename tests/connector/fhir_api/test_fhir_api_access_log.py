"""What a client or a stranger can do to the record of its own accesses: add to it, and nothing else."""

import asyncio
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from kit.fhir_api_client import Program, events, queries, serving
from kit.hospital import Hospital

from connector.fhir_api.access_log import AuditLog, Event
from connector.fhir_api.limits import Limits
from connector.listeners.internal import internal_app
from vht_federate.errors import UnavailableError

DAY = 86_400


def read_event(number: int, client: str | None = "c1") -> Event:
    return Event("read", "127.0.0.1", client=client, resource=f"Patient/{number}")


def small_log(program: Program, folder: Path, **limits: int) -> AuditLog:
    bounds = replace(Limits(audit_file=4_000, audit_files=2, audit_files_max=6), **limits)
    return AuditLog(folder, "hospital-1", "https://h/fhir", program.node.clock, bounds)


def filled(log: AuditLog, client: str | None = "c1") -> int:
    """How many events it takes until it is full."""
    for number in range(1_000):
        try:
            log.write(read_event(number, client))
        except UnavailableError:
            return number
    raise AssertionError("the log is never full")


# --- what is written stays --------------------------------------------------------------------------------------------


def test_no_recent_event_is_dropped_and_a_full_log_answers_nobody(program: Program, tmp_path: Path) -> None:
    log = small_log(program, tmp_path)
    count = filled(log)
    assert count > 6
    assert len(list(log.events())) == count
    assert len(list(tmp_path.iterdir())) == 6
    with pytest.raises(UnavailableError, match="the access log is full"):
        log.require_disk_space()
    min(tmp_path.iterdir()).rename(tmp_path.parent / "archived.ndjson")
    log.require_disk_space()
    log.write(read_event(count))


def test_old_files_go_and_only_they(program: Program, tmp_path: Path) -> None:
    log = small_log(program, tmp_path)
    filled(log)
    files = sorted(tmp_path.iterdir())
    for path, days in zip(files, (40, 31, 29, 2, 1, 0), strict=True):
        os.utime(path, (time.time() - days * DAY,) * 2)
    log.write(read_event(5_000))
    assert sorted(tmp_path.iterdir())[:4] == files[2:]
    assert next(log.events())["entity"][0]["what"]["reference"] == "Patient/5000"


def test_strangers_fill_half_of_it_and_clients_are_still_answered(program: Program, tmp_path: Path) -> None:
    log = small_log(program, tmp_path)
    filled(log, client=None)
    assert len(list(tmp_path.iterdir())) == 3
    log.require_disk_space()
    log.write(read_event(1))


def test_where_nothing_can_be_recorded_nothing_is_answered(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    token = program.token()
    log = small_log(program, tmp_path)
    filled(log)
    monkeypatch.setattr(program.node.fhir_api, "audit", log)
    for answer in (program.get("Patient", token), program.export(token=token)):
        assert answer.status_code == 503
        assert "VHT-UNAVAILABLE-DISK" in answer.text
    assert not program.node.fhir_api.exports._jobs
    assert program.ask().status_code == 503


def test_a_search_is_in_the_log_as_a_whole_or_refused(program: Program) -> None:
    token = program.token()
    people = [resource["id"] for resource in program.search("Patient", token)]
    before = len(events(program.node))
    padded = ",".join([*(f"x{number}" for number in range(150)), people[0]])
    assert program.get(f"Observation?patient={padded}", token).status_code == 200
    crowd = "&".join(f"patient={','.join(people)}" for _ in range(3))
    many = "&".join("code=8480-6" for _ in range(21))
    for query in (crowd, many):
        answer = program.get(f"Observation?{query}", token)
        assert (answer.status_code, "VHT-INPUT-SEARCH" in answer.text) == (400, True)
    padding, *refused = events(program.node)[before:]
    assert queries(padding) == f"Observation?patient=unknown%2C{people[0]}"
    assert [event["outcomeDesc"] for event in refused] == ["VHT-INPUT-SEARCH"] * 2


# --- who was refused --------------------------------------------------------------------------------------------------


def who(event: dict[str, Any]) -> tuple[str | None, str]:
    agent = event["agent"][0]
    return agent["who"].get("identifier", {}).get("value"), (agent.get("policy") or [""])[0]


def test_refusals_name_the_client_whose_token_or_signature_it_was(stocked: Hospital) -> None:
    with serving(stocked, permit_id="permit-9") as program:
        token = program.token()
        known = program.id, "urn:vht:permit:permit-9"
        assertion = program.assertion()
        assert program.ask(assertion).status_code == 200
        before = len(events(program.node))
        program.ask(assertion)
        program.ask(program.assertion(aud="https://elsewhere.example/token"))
        program.ask(scope="system/Practitioner.rs")
        stocked.issuer.revoke("permit-9")
        program.get("Patient", token)
        program.ask()
        operator = {"Authorization": f"Bearer {program.node.files.operator_token.read_text().strip()}"}
        program.web.post(f"/api/fhir-clients/{program.id}/revoke", headers=operator)
        program.get("Patient", token)
        assert program.ask().json()["error_description"].startswith("VHT-REFUSED-CLIENT")
        audit_events = events(program.node)[before:]
        assert [event["outcomeDesc"] for event in audit_events] == [
            "VHT-REFUSED-ASSERTION-REPLAY", "VHT-REFUSED-ASSERTION-AUDIENCE", "VHT-REFUSED-SCOPE",
            "VHT-PERMIT-REVOKED", "VHT-PERMIT-REVOKED", "VHT-REFUSED-TOKEN", "VHT-REFUSED-CLIENT"]  # fmt: skip
        assert [who(event) for event in audit_events] == [known] * 7


@pytest.mark.parametrize("what", ["read", "token"])
def test_what_nobody_foresaw_is_in_the_log_and_answered_without_its_words(
    program: Program, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError("p7 is ill")

    if what == "read":
        bearer = {"Authorization": f"Bearer {program.token()}"}
        monkeypatch.setattr(program.node.fhir_api, "access", fail)
        answer = sent(program, "10.0.0.1", "GET", "/fhir/Patient/p7", headers=bearer)
    else:
        monkeypatch.setattr(program.node.fhir_api.tokens, "asked", fail)
        answer = asked_by(program, "10.0.0.1")
    assert (answer.status_code, answer.json()["resourceType"]) == (500, "OperationOutcome")
    assert "p7" not in answer.text
    newest = events(program.node)[-1]
    assert (newest["subtype"][0]["display"], newest["outcome"], newest["outcomeDesc"]) == (what, "4", "VHT-INTERNAL")


def test_whoever_only_names_a_client_stays_a_stranger(program: Program) -> None:
    other = Program(program.node, program.web, id=program.id)  # another key
    assert other.ask().status_code == 401
    assert who(events(program.node)[-1]) == (None, "")


# --- how often --------------------------------------------------------------------------------------------------------


def sent(program: Program, address: str, method: str, path: str, **more: Any) -> httpx.Response:
    """As a peer of that address."""

    async def ask() -> httpx.Response:
        transport = httpx.ASGITransport(internal_app(program.node), raise_app_exceptions=False, client=(address, 1))
        async with httpx.AsyncClient(transport=transport, base_url="https://app") as client:
            return await client.request(method, path, **more)

    return asyncio.run(ask())


def asked_by(program: Program, address: str) -> httpx.Response:
    form = {"grant_type": "client_credentials", "scope": "system/*.rs", "client_assertion": program.assertion(),
            "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"}  # fmt: skip
    return sent(program, address, "POST", "/fhir/token", data=form)


def test_one_stranger_locks_nobody_else_out_and_hides_nobody_else(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program.node.fhir_api, "limits", replace(Limits(), burst=3, requests_per_s=1e-6))
    api, noisy, quiet = program.node.fhir_api, "10.0.0.66", "10.0.0.7"
    api._buckets.clear()
    before = len(events(program.node))
    for _ in range(6):
        sent(program, noisy, "POST", "/fhir/token", data={"grant_type": "password"})
        sent(program, noisy, "GET", "/fhir/Patient")
    assert sent(program, noisy, "GET", "/fhir/Patient").status_code == 429
    assert len(events(program.node)) - before == 3
    assert sent(program, quiet, "GET", "/fhir/Patient").status_code == 401
    assert events(program.node)[-1]["agent"][0]["network"]["address"] == quiet
    answer = asked_by(program, quiet)
    assert answer.status_code == 200
    token = {"Authorization": f"Bearer {answer.json()['access_token']}"}
    answers = [sent(program, noisy, "GET", "/fhir/Patient", headers=token).status_code for _ in range(4)]
    assert answers == [200, 200, 200, 429]
    assert who(events(program.node)[-1])[0] == program.id
    api._buckets.clear()


def test_addresses_without_end_take_no_memory_without_end(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("connector.fhir_api.service.BUCKETS", 50)
    monkeypatch.setattr(program.node.fhir_api, "limits", replace(Limits(), requests_per_s=1e9))
    for number in range(200):
        program.node.fhir_api.require_rate(f"token 10.0.0.{number}")
    assert len(program.node.fhir_api._buckets) <= 51
