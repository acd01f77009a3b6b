"""A client of the local FHIR API for tests: keys, assertions, tokens, and a node that answers in this process."""

import base64
import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import jwt
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from connector.fhir_api.tokens import ASSERTION_TYPE
from connector.listeners.internal import internal_app
from connector.node import Node
from kit.hospital import COLUMNS, Hospital
from vht_federate.testing.asgi import AppClient

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def public_jwk(key: Any, kid: str) -> dict[str, Any]:
    algorithm = ECAlgorithm if isinstance(key, ec.EllipticCurvePrivateKey) else RSAAlgorithm
    return {**algorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid}


@dataclass
class Program:
    """A program that holds a key, and what the operator said when it was registered."""

    node: Node
    web: AppClient
    key: Any = field(default_factory=lambda: ec.generate_private_key(ec.SECP384R1()))
    kid: str = "k1"
    id: str = ""

    @property
    def algorithm(self) -> str:
        return "ES384" if isinstance(self.key, ec.EllipticCurvePrivateKey) else "RS384"

    @property
    def token_url(self) -> str:
        return f"{self.node.fhir_api.base}/token"

    def register(self, permit: str, scope: str = "system/*.rs", **more: Any) -> "Program":
        keys = {"jwks": {"keys": [public_jwk(self.key, self.kid)]}} | more
        body = {"name": "registry", "permit": permit, "scope": scope, **keys}
        operator = {"Authorization": f"Bearer {self.node.files.operator_token.read_text().strip()}"}
        answer = self.web.post("/api/fhir-clients", json=body, headers=operator)
        assert answer.status_code == 201, answer.text
        self.id = answer.json()["client"]
        return self

    def assertion(self, *, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        now = int(time.time())
        payload = {"iss": self.id, "sub": self.id, "aud": self.token_url, "exp": now + 240, "jti": str(uuid.uuid4())}
        payload = {name: value for name, value in (payload | claims).items() if value is not None}
        return jwt.encode(payload, self.key, algorithm=self.algorithm, headers={"kid": self.kid} | (headers or {}))

    def ask(self, assertion: str | None = None, scope: str = "system/*.rs", **form: str) -> Any:
        fields = {
            "grant_type": "client_credentials",
            "scope": scope,
            "client_assertion_type": ASSERTION_TYPE,
            "client_assertion": assertion or self.assertion(),
        }
        return self.web.post("/fhir/token", data=fields | form)

    def token(self, scope: str = "system/*.rs") -> str:
        answer = self.ask(scope=scope)
        assert answer.status_code == 200, answer.text
        return str(answer.json()["access_token"])

    def call(self, method: str, path: str, token: str | None = None, **more: Any) -> Any:
        headers = {"Authorization": f"Bearer {token or self.token()}"} | more.pop("headers", {})
        return self.web.request(method, path, headers=headers, **more)

    def get(self, path: str, token: str | None = None, **more: Any) -> Any:
        return self.call("GET", f"/fhir/{path}", token, **more)

    def search(self, path: str, token: str | None = None) -> list[dict[str, Any]]:
        """All pages of a search."""
        token, resources, where = token or self.token(), [], f"/fhir/{path}"
        while where:
            answer = self.call("GET", where, token)
            assert answer.status_code == 200, answer.text
            page = answer.json()
            resources += [entry["resource"] for entry in page.get("entry", [])]
            links = {link["relation"]: urlsplit(link["url"]) for link in page["link"]}
            where = f"{links['next'].path}?{links['next'].query}" if "next" in links else ""
        assert len(resources) == page["total"]
        return resources

    def export(self, path: str = "$export", token: str | None = None, **more: Any) -> Any:
        """The answer to a kick-off."""
        prefer = {"Prefer": "respond-async", "Accept": "application/fhir+json"}
        return self.call(more.pop("method", "GET"), f"/fhir/{path}", token, headers=prefer, **more)

    def await_export(self, kickoff: Any, token: str | None = None) -> Any:
        assert kickoff.status_code == 202, kickoff.text
        where, token = urlsplit(kickoff.headers["Content-Location"]).path, token or self.token()
        deadline = time.monotonic() + 300
        while (answer := self.call("GET", where, token)).status_code == 202:
            assert answer.headers["Retry-After"]
            assert answer.headers["X-Progress"]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return answer

    def download(self, manifest: dict[str, Any], token: str | None = None) -> dict[str, list[dict[str, Any]]]:
        token, by_type = token or self.token(), {}
        for output in manifest["output"]:
            answer = self.call("GET", urlsplit(output["url"]).path, token)
            assert answer.status_code == 200, answer.text
            lines = [json.loads(line) for line in answer.text.splitlines()]
            assert len(lines) == output["count"]
            by_type.setdefault(output["type"], []).extend(lines)
        return by_type


@contextmanager
def serving(hospital: Hospital, **permit: Any) -> Iterator[Program]:
    """A registered program with the usual columns, at a running node."""
    with hospital.open() as node:
        web = AppClient(internal_app(node), raise_app_exceptions=False)
        yield Program(node, web).register(hospital.permit(**({"columns": COLUMNS} | permit)))


def events(node: Node) -> list[dict[str, Any]]:
    """The access log's AuditEvents, oldest first."""
    return list(reversed(list(node.fhir_api.audit.events())))


def queries(event: dict[str, Any]) -> str | None:
    encoded = [entity["query"] for entity in event.get("entity", []) if "query" in entity]
    return base64.b64decode(encoded[0]).decode() if encoded else None
