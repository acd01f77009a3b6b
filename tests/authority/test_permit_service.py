"""The issuer by its public commands and its HTTPS service, in real processes."""

import contextvars
import json
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import tomli_w
from typer.testing import CliRunner

from deploy.pki import issue_certificate, make_authority
from vht_federate.authority.store import Register
from vht_federate.cli import app
from vht_federate.client import Client
from vht_federate.domain.permit import Permit
from vht_federate.errors import PermitError, RevokedError, UnavailableError
from vht_federate.permits.check import check_status, read_permit
from vht_federate.signing.keys import PublicKey

VHT = [sys.executable, "-m", "vht_federate"]


def vht(*arguments: str, code: int = 0) -> dict[str, Any]:
    """``vht … --json`` in this process: only ``serve`` needs its own."""
    result = contextvars.copy_context().run(CliRunner().invoke, app, ["--json", *arguments])
    assert result.exit_code == code, result.output
    envelope = json.loads(result.stdout)
    assert envelope["ok"] is (code == 0)
    answer: dict[str, Any] = envelope["data" if code == 0 else "error"]
    return answer


def fields(**changes: Any) -> dict[str, Any]:
    base = {
        "hdab": "HDAB of the test",
        "application_ref": "application-1",
        "days": 30,
        "categories": ["51.1.a"],
        "dataset_ids": ["urn:vht:h1:ehr"],
        "columns": ["age"],
        "purposes": ["53.1.e.ii"],
        "purpose_text": "learn",
        "controller": "Institute",
        "component_digests": ["ab" * 32],
        "epsilon": 3.0,
        "delta": 1e-5,
        "minimum_nodes": 3,
        "data_users": [{"name": "Institute", "kind": "academic", "key": "user.pub.json"}],
    }
    return {**base, **changes}


class Issuer:
    """A served issuer in ``root``."""

    def __init__(self, root: Path) -> None:
        self.root, self.state = root, root / "authority"
        make_authority(root / "pki", now=datetime.now(UTC))
        tls = issue_certificate(root / "pki", "authority", root / "tls", now=datetime.now(UTC))
        vht("permit", "keygen", str(root), "--name", "user")
        authority = vht(
            "permit", "init", "--state", str(self.state), "--certificate", str(tls.certificate), "--key", str(tls.key),
            "--port", "0",
        )  # fmt: skip
        self.url, self.ca = authority["url"], tls.ca
        self.process = subprocess.Popen(
            [*VHT, "permit", "serve", "--state", str(self.state)], stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )
        deadline = time.monotonic() + 300
        while True:
            try:
                with Client(self.url, self.ca) as client:
                    assert client.get("/health") == {"status": "ok", "service": "authority"}
                return
            except UnavailableError:
                assert time.monotonic() < deadline
                assert self.process.poll() is None
                time.sleep(0.05)

    @property
    def key(self) -> PublicKey:
        return PublicKey.read(self.state / "issuer.pub.json")

    def issue(self, **changes: Any) -> tuple[Permit, Path]:
        request = self.root / "permit.toml"
        request.write_text(tomli_w.dumps(fields(**changes)))
        out = self.root / "permit.jwt"
        vht("permit", "issue", "--state", str(self.state), "--from", str(request), "--out", str(out))
        return read_permit(out.read_text().strip(), self.key), out

    def status(self) -> str:
        with Client(self.url, self.ca) as client:
            return client.request("GET", "/status-list").text


@pytest.fixture(scope="module")
def issuer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Issuer]:
    service = Issuer(tmp_path_factory.mktemp("issuer"))
    yield service
    if service.process.poll() is None:
        service.process.send_signal(signal.SIGTERM)
    service.process.communicate(timeout=300)


def test_the_service_publishes_the_key_that_signs(issuer: Issuer) -> None:
    with Client(issuer.url, issuer.ca) as client:
        assert client.get("/keys") == {"keys": [issuer.key.jwk()]}
    assert (issuer.state / "issuer.key").stat().st_mode & 0o777 == 0o600


def test_a_revocation_by_command_reaches_the_running_service_at_once(issuer: Issuer) -> None:
    permit, file = issuer.issue()
    before = check_status(issuer.status(), issuer.key, permit, datetime.now(UTC))
    shown = vht("permit", "show", str(file), "--issuer", str(issuer.state / "issuer.pub.json"))
    assert shown["verified"] is True
    assert shown["permit"]["permit_id"] == permit.permit_id
    first = vht("permit", "revoke", "--state", str(issuer.state), permit.permit_id)
    assert vht("permit", "revoke", "--state", str(issuer.state), permit.permit_id) == first
    after = issuer.status()
    with pytest.raises(RevokedError):
        check_status(after, issuer.key, permit, datetime.now(UTC))
    other, _ = issuer.issue()
    assert check_status(after, issuer.key, other, datetime.now(UTC)).serial == before.serial + 1
    with pytest.raises(PermitError) as caught:
        check_status(after, issuer.key, other, datetime.now(UTC) + timedelta(seconds=61))
    assert caught.value.code == "VHT-PERMIT-STATUS-STALE"


def test_the_public_register_shows_states_and_no_keys(issuer: Issuer) -> None:
    permit, _ = issuer.issue(controller="Register Institute")
    vht("permit", "revoke", "--state", str(issuer.state), permit.permit_id, "--reason", "a confidential reason")
    with Client(issuer.url, issuer.ca) as client:
        answer = client.request("GET", "/permits")
    (record,) = [item for item in answer.json()["permits"] if item["permit_id"] == permit.permit_id]
    assert record["state"] == "revoked"
    assert record["purposes"] == ["53.1.e.ii"]
    assert record["data_users"] == [{"name": "Institute", "kind": "academic"}]
    assert permit.data_users[0].kid not in answer.text
    assert "confidential" not in answer.text
    listed = vht("permit", "list", "--state", str(issuer.state))["permits"]
    assert record in listed


def test_an_unknown_path_answers_with_a_typed_error(issuer: Issuer) -> None:
    context = ssl.create_default_context(cafile=str(issuer.ca))
    answer = httpx.get(f"{issuer.url}/nothing", verify=context, trust_env=False)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "VHT-INPUT-NOT-FOUND"


def test_a_second_service_on_the_same_state_is_refused(issuer: Issuer) -> None:
    assert vht("permit", "serve", "--state", str(issuer.state), code=5)["code"] == "VHT-UNAVAILABLE-RUNNING"


def test_bad_requests_name_the_field_and_leave_no_permit(issuer: Issuer) -> None:
    before = len(vht("permit", "list", "--state", str(issuer.state))["permits"])
    out = issuer.root / "never.jwt"
    cases: list[tuple[dict[str, Any], str]] = [
        ({"days": -1}, "days"),
        ({"days": 5000}, "ten years"),
        ({"days": 3654}, "ten years"),
        ({"permit_id": "mine"}, "permit_id"),
        ({"epsilon": 0}, "epsilon"),
        ({"purposes": ["99"]}, "purposes"),
        ({"surprise": 1}, "surprise"),
        ({"data_users": [{"name": "x", "kind": "academic"}]}, "data_users"),
        ({"prohibited_uses": ["54.a"]}, "Article 54"),
    ]
    for changes, word in cases:
        request = issuer.root / "bad.toml"
        request.write_text(tomli_w.dumps(fields(**changes)))
        arguments = ("--state", str(issuer.state), "--from", str(request), "--out", str(out))
        error = vht("permit", "issue", *arguments, code=2)
        assert error["code"] == "VHT-INPUT-PERMIT"
        assert word in error["message"]
    assert not out.exists()
    assert len(vht("permit", "list", "--state", str(issuer.state))["permits"]) == before


def test_revoking_an_unknown_permit_and_showing_a_forged_one_fail(issuer: Issuer) -> None:
    assert vht("permit", "revoke", "--state", str(issuer.state), "permit-0", code=2)["code"] == "VHT-INPUT-PERMIT"
    _, file = issuer.issue()
    forged = issuer.root / "forged.jwt"
    forged.write_text(file.read_text()[:-20] + "A" * 19 + "\n")
    trusted = str(issuer.state / "issuer.pub.json")
    assert vht("permit", "show", str(forged), "--issuer", trusted, code=3)["code"] == "VHT-PERMIT-SIGNATURE"


def test_a_folder_that_is_no_issuers_state_is_refused(tmp_path: Path) -> None:
    assert vht("permit", "serve", "--state", str(tmp_path), code=2)["code"] == "VHT-INPUT-STATE"
    assert vht("permit", "revoke", "--state", str(tmp_path / "typo"), "permit-1", code=2)["code"] == "VHT-INPUT-STATE"
    assert not (tmp_path / "typo").exists()


def test_the_service_stops_on_command_and_by_signal(issuer: Issuer) -> None:
    assert vht("permit", "stop", "--state", str(issuer.state)) == {"stopped": True}
    assert issuer.process.wait(timeout=300) == 0
    assert not (issuer.state / "serve.pid").exists()
    assert vht("permit", "stop", "--state", str(issuer.state)) == {"stopped": False}
    assert len(Register(issuer.state / "authority.sqlite").permits()) > 0
