"""SMART Backend Services at the node: whoever is not exactly who was registered gets nothing."""

import json
import ssl
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jwt
import orjson
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from kit.fhir_api_client import RSA, Program, events, public_jwk, serving
from kit.hospital import DATASET, Hospital

from connector.listeners.internal import internal_app
from vht_federate.domain.law import DataCategory, Purpose
from vht_federate.signing.keys import SigningKey
from vht_federate.tcp_ports import free_port
from vht_federate.testing.asgi import AppClient


def refused(answer: Any, word: str, code: str) -> None:
    assert answer.status_code in (400, 401), answer.text
    assert answer.json()["error"] == word
    assert answer.json()["error_description"].startswith(f"{code}:")
    assert answer.headers["cache-control"] == "no-store"


def test_both_algorithms_buy_a_token_that_opens_what_was_granted(program: Program, home: Hospital) -> None:
    rsa_program = Program(program.node, program.web, key=RSA).register(home.permit(), "system/Patient.rs")
    for client in (program, rsa_program):
        answer = client.ask().json()
        assert (answer["token_type"], answer["expires_in"]) == ("bearer", 300)
        assert client.get("Patient", answer["access_token"]).status_code == 200
    assert answer["scope"] == "system/Patient.rs"
    assert rsa_program.get("Observation").status_code == 403


NOW = time.time
LONG_AGO = datetime.now(UTC) - timedelta(days=9)


@pytest.mark.parametrize(
    ("claims", "word", "code"),
    [
        ({"exp": lambda: NOW() + 330}, "invalid_client", "VHT-REFUSED-ASSERTION-EXPIRY"),
        ({"exp": lambda: NOW() + 10**9}, "invalid_client", "VHT-REFUSED-ASSERTION-EXPIRY"),
        ({"exp": lambda: NOW() - 5}, "invalid_client", "VHT-REFUSED-ASSERTION-EXPIRY"),
        ({"exp": lambda: "soon"}, "invalid_request", "VHT-INPUT-ASSERTION"),
        ({"exp": lambda: None}, "invalid_client", "VHT-REFUSED-CLIENT"),
        ({"nbf": lambda: NOW() + 1000}, "invalid_client", "VHT-REFUSED-ASSERTION-EXPIRY"),
        ({"jti": lambda: None}, "invalid_client", "VHT-REFUSED-CLIENT"),
        ({"jti": lambda: "x" * 10_000}, "invalid_request", "VHT-INPUT-ASSERTION"),
        ({"aud": lambda: "https://elsewhere.example/token"}, "invalid_client", "VHT-REFUSED-ASSERTION-AUDIENCE"),
        ({"sub": lambda: "somebody"}, "invalid_client", "VHT-REFUSED-CLIENT"),
        ({"iss": lambda: "nobody", "sub": lambda: "nobody"}, "invalid_client", "VHT-REFUSED-CLIENT"),
    ],
)
def test_an_assertion_that_says_too_much_or_too_little(program: Program, claims: Any, word: str, code: str) -> None:
    refused(program.ask(program.assertion(**{name: make() for name, make in claims.items()})), word, code)


def test_an_assertion_is_taken_once_also_by_the_next_process(stocked: Hospital) -> None:
    assertion = ""
    with serving(stocked) as first:
        assertion = first.assertion()
        assert first.ask(assertion).status_code == 200
        refused(first.ask(assertion), "invalid_client", "VHT-REFUSED-ASSERTION-REPLAY")
        old_token, client = first.token(), first
    with stocked.open() as node:
        web = AppClient(internal_app(node))
        again = Program(node, web, key=client.key, id=client.id)
        refused(again.ask(assertion), "invalid_client", "VHT-REFUSED-ASSERTION-REPLAY")
        assert again.get("Patient", old_token).status_code == 401  # tokens do not outlive their process
        assert again.ask().status_code == 200


def test_other_keys_algorithms_and_key_sets_are_refused(program: Program) -> None:
    claims = jwt.decode(program.assertion(), options={"verify_signature": False})
    other_key = ec.generate_private_key(ec.SECP384R1())
    forged = jwt.encode(claims, other_key, algorithm="ES384", headers={"kid": program.kid})
    refused(program.ask(forged), "invalid_client", "VHT-REFUSED-CLIENT")
    refused(program.ask(program.assertion(headers={"kid": "k2"})), "invalid_client", "VHT-REFUSED-CLIENT")
    own = {"jwk": public_jwk(other_key, program.kid)}
    refused(program.ask(jwt.encode(claims, other_key, algorithm="ES384", headers={"kid": "k1", **own})),
            "invalid_client", "VHT-REFUSED-CLIENT")  # fmt: skip
    public = public_jwk(program.key, "k1")["x"].encode()
    for forgery in (
        jwt.encode(claims, None, algorithm="none", headers={"kid": "k1"}),
        jwt.encode(claims, public, algorithm="HS256", headers={"kid": "k1"}),
        jwt.encode(claims, public, algorithm="HS384", headers={"kid": "k1"}),
        jwt.encode(claims, RSA, algorithm="RS256", headers={"kid": "k1"}),
    ):
        refused(program.ask(forgery), "invalid_client", "VHT-REFUSED-ASSERTION-ALGORITHM")
    elsewhere = program.assertion(headers={"jku": "https://attacker.example/jwks.json"})
    refused(program.ask(elsewhere), "invalid_client", "VHT-REFUSED-ASSERTION-JKU")


def test_forms_that_are_none_and_scopes_that_are_not_granted(program: Program, home: Hospital) -> None:
    refused(program.ask(grant_type="authorization_code"), "unsupported_grant_type", "VHT-INPUT-GRANT")
    refused(program.ask(client_assertion_type="basic"), "invalid_request", "VHT-INPUT-ASSERTION")
    refused(program.ask("not.a.jwt"), "invalid_request", "VHT-INPUT-ASSERTION")
    refused(program.web.post("/fhir/token", json={}), "invalid_request", "VHT-INPUT-ASSERTION")
    narrow = Program(program.node, program.web).register(home.permit(), "system/Patient.rs")
    for scope in ("system/Observation.rs", "system/*.cud", "user/*.rs", "", "system/Patient.rs.*"):
        refused(narrow.ask(scope=scope), "invalid_scope", "VHT-REFUSED-SCOPE")
    assert narrow.ask(scope="system/*.read launch").json()["scope"] == "system/Patient.rs"


def test_a_revoked_client_has_nothing_any_more(stocked: Hospital) -> None:
    with serving(stocked) as program:
        token = program.token()
        operator = {"Authorization": f"Bearer {program.node.files.operator_token.read_text().strip()}"}
        path = f"/api/fhir-clients/{program.id}/revoke"
        assert program.web.post(path).status_code == 403
        assert program.web.post(path, headers=operator).json()["revoked_at"]
        assert program.get("Patient", token).status_code == 401
        refused(program.ask(), "invalid_client", "VHT-REFUSED-CLIENT")
        assert [kind for kind in stocked.kinds() if kind.startswith("fhir.client")][-2:] == [
            "fhir.client-registered", "fhir.client-revoked"]  # fmt: skip


def test_a_permit_that_ends_takes_its_tokens_with_it(stocked: Hospital) -> None:
    with serving(stocked, permit_id="permit-9") as program:
        token = program.token()
        assert program.get("Patient", token).status_code == 200
        stocked.issuer.revoke("permit-9")
        answer = program.get("Patient", token)
        assert answer.status_code == 403
        assert "VHT-PERMIT-REVOKED" in answer.text
        refused(program.ask(), "unauthorized_client", "VHT-PERMIT-REVOKED")
        assert events(program.node)[-1]["outcomeDesc"] == "VHT-PERMIT-REVOKED"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"dataset_ids": ("urn:vht:elsewhere:ehr",)}, "VHT-PERMIT-DATASET"),
        ({"categories": (DataCategory.GENOMIC,)}, "VHT-PERMIT-CATEGORY"),
        ({"purposes": (Purpose.PUBLIC_HEALTH,)}, "VHT-PERMIT-PURPOSE"),
        ({"issued_at": LONG_AGO, "not_before": LONG_AGO, "expires_at": LONG_AGO + timedelta(1)}, "VHT-PERMIT-EXPIRED"),
        ({"key": SigningKey.generate()}, "VHT-PERMIT-"),
    ],
)  # fmt: skip
def test_no_client_is_registered_under_a_permit_that_does_not_hold(
    program: Program, home: Hospital, changes: dict[str, Any], code: str
) -> None:
    operator = {"Authorization": f"Bearer {program.node.files.operator_token.read_text().strip()}"}
    body = {
        "name": "x",
        "permit": home.permit(permit_id=f"permit-{code}", **changes),
        "scope": "system/*.rs",
        "jwks": {"keys": [public_jwk(program.key, "k1")]},
    }
    answer = program.web.post("/api/fhir-clients", json=body, headers=operator)
    assert answer.status_code == 403
    assert answer.json()["error"]["code"].startswith(code)
    assert DATASET


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"jwks": None}, "VHT-INPUT-CLIENT"),
        ({"jku": "https://a.example/jwks"}, "VHT-INPUT-CLIENT"),
        ({"jwks": None, "jku": "http://a.example/jwks"}, "VHT-INPUT-CLIENT"),
        ({"jwks": {"keys": []}}, "VHT-INPUT-JWKS"),
        ({"jwks": {"keys": [{"kty": "oct", "k": "c2VjcmV0", "kid": "k"}]}}, "VHT-INPUT-JWKS"),
        ({"jwks": {"keys": [{"kty": "EC", "crv": "P-256", "kid": "k"}]}}, "VHT-INPUT-JWKS"),
        ({"scope": "user/*.rs"}, "VHT-INPUT-SCOPE"),
        ({"scope": " "}, "VHT-INPUT-SCOPE"),
    ],
)
def test_registrations_that_make_no_sense(program: Program, home: Hospital, change: Any, code: str) -> None:
    operator = {"Authorization": f"Bearer {program.node.files.operator_token.read_text().strip()}"}
    registration = {"name": "x", "permit": home.permit(), "scope": "system/*.rs",
                    "jwks": {"keys": [public_jwk(program.key, "k1")]}}  # fmt: skip
    answer = program.web.post("/api/fhir-clients", json=registration | change, headers=operator)
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, code)
    private = {**jwt.algorithms.ECAlgorithm.to_jwk(program.key, as_dict=True), "kid": "k1"}
    private_answer = program.web.post(
        "/api/fhir-clients", json=registration | {"jwks": {"keys": [private]}}, headers=operator
    )
    assert private_answer.json()["error"]["code"] == "VHT-INPUT-JWKS"


class _KeySet(BaseHTTPRequestHandler):
    def __init__(self, content: bytes, *args: Any) -> None:
        self._content = content
        super().__init__(*args)

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self._content)

    def log_message(self, *_: Any) -> None:
        return None


def test_keys_behind_a_registered_address_are_read_over_tls(program: Program, home: Hospital) -> None:
    key = ec.generate_private_key(ec.SECP384R1())
    content = orjson.dumps({"keys": [public_jwk(key, "k1")]})
    port = free_port()
    server = ThreadingHTTPServer(("127.0.0.1", port), partial(_KeySet, content))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(home.tls.certificate, home.tls.key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"https://127.0.0.1:{port}/jwks.json"
    remote = Program(program.node, program.web, key=key).register(home.permit(), jwks=None, jku=address)
    assert remote.ask(remote.assertion(headers={"jku": address})).status_code == 200
    refused(
        remote.ask(remote.assertion(headers={"jku": f"{address}?other"})), "invalid_client", "VHT-REFUSED-ASSERTION-JKU"
    )
    server.shutdown()
    server.server_close()
    thread.join(10)
    refused(remote.ask(), "invalid_client", "VHT-REFUSED-CLIENT-KEYS")


def test_the_operator_registers_and_revokes_at_a_node_that_rests(stocked: Hospital, tmp_path: Path) -> None:
    def vht(*words: Any) -> Any:
        command = [Path(sys.executable).parent / "vht", "--json", "node", *map(str, words)]
        completed = subprocess.run(command, capture_output=True, text=True)
        return json.loads(completed.stdout)

    keys, permit = tmp_path / "program.jwks", tmp_path / "permit.jwt"
    keys.write_bytes(orjson.dumps({"keys": [public_jwk(RSA, "k1")]}))
    permit.write_text(stocked.permit())
    arguments = ("--name", "registry", "--jwks", keys, "--permit", permit, "--operator", "Dr Ada")
    assert vht("client", "add", stocked.state, *arguments)["error"]["code"] == "VHT-REFUSED-OPERATOR-UNKNOWN"
    with stocked.open(start=False) as node:
        node.accounts.add("Dr Ada", "approver", "correct horse")
    registration = vht("client", "add", stocked.state, *arguments)["data"]
    assert registration["base"].endswith("/fhir")
    [client] = vht("client", "list", stocked.state)["data"]["clients"]
    assert (client["client"], client["registered_by"], client["revoked_at"]) == (registration["client"], "Dr Ada", None)
    assert vht("client", "revoke", stocked.state, registration["client"])["data"]["revoked_at"]
    assert vht("client", "revoke", stocked.state, "nobody")["error"]["code"] == "VHT-INPUT-NOT-FOUND"
    assert vht("audit-events", stocked.state)["data"]["events"] == []
    assert vht("client", "add", stocked.state, *arguments[:2], *arguments[4:])["error"]["code"] == "VHT-INPUT-CLIENT"
