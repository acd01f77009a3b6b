"""smart-fetch, a client of FHIR servers that is not ours, completes an export from the local FHIR API over TLS."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from jwt.algorithms import ECAlgorithm
from kit.fhir_api_client import Program, events, serving
from kit.hospital import Hospital, await_that

from connector.listeners.internal import internal_app

SMART_FETCH = Path(sys.executable).parent / "smart-fetch"
KINDS = ("Condition", "Observation", "Patient")


@pytest.fixture
def listening(stocked: Hospital) -> Iterator[Program]:
    """A program at a node whose internal listener takes connections."""
    with serving(stocked) as program:
        settings = program.node.settings
        config = uvicorn.Config(
            internal_app(program.node),
            host=settings.internal_host,
            port=settings.internal_port,
            ssl_certfile=settings.certificate,
            ssl_keyfile=settings.key,
            log_level="error",
            ws="none",
            loop="asyncio",
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        await_that(lambda: server.started, 60)
        yield program
        server.should_exit = True
        thread.join(30)


def fetch(program: Program, hospital: Hospital, out: Path) -> subprocess.CompletedProcess[str]:
    if not SMART_FETCH.exists():
        if os.environ.get("CI") == "true":
            pytest.fail("smart-fetch is not installed")
        pytest.skip("needs smart-fetch, of the development dependencies")
    key = hospital.root / "client.jwks"
    private = {**ECAlgorithm.to_jwk(program.key, as_dict=True), "kid": program.kid, "alg": "ES384", "key_ops": ["sign"]}
    key.write_text(json.dumps({"keys": [private]}))
    arguments = ["bulk", str(out), "--fhir-url", program.node.fhir_api.base, "--smart-client-id", program.id,
                 "--smart-key", str(key), "--type", ",".join(KINDS),
                 "--no-default-filters", "--no-compression"]  # fmt: skip
    trusting = {**os.environ, "SSL_CERT_FILE": str(hospital.tls.ca)}
    return subprocess.run([SMART_FETCH, *arguments], capture_output=True, text=True, timeout=300, env=trusting)


def read(out: Path) -> dict[str, dict[str, Any]]:
    lines = {kind: [line for path in out.glob(f"{kind}.*") for line in path.read_text().splitlines()] for kind in KINDS}
    return {kind: {resource["id"]: resource for resource in map(json.loads, texts)} for kind, texts in lines.items()}


def test_smart_fetch_downloads_what_the_api_holds(listening: Program, stocked: Hospital) -> None:
    out = stocked.root / "fetched"
    completed = fetch(listening, stocked, out)
    assert completed.returncode == 0, completed.stdout + completed.stderr
    token = listening.token()
    expected = {kind: {resource["id"]: resource for resource in listening.search(kind, token)} for kind in KINDS}
    assert read(out) == expected
    assert {kind: len(resources) for kind, resources in expected.items()} == {
        "Condition": 10,
        "Observation": 40,
        "Patient": 40,
    }
    words = [event["subtype"][0]["display"] for event in events(listening.node)]
    assert words[:5] == ["token", "export", "download", "download", "download"]
    assert "fhir.exported" in stocked.kinds()


def test_smart_fetch_with_a_key_that_was_not_registered_gets_nothing(listening: Program, stocked: Hospital) -> None:
    out = stocked.root / "fetched"
    stranger = Program(listening.node, listening.web, id=listening.id)
    assert fetch(stranger, stocked, out).returncode != 0
    assert not list(out.glob("*.001.ndjson"))
    assert events(listening.node)[-1]["outcomeDesc"] == "VHT-REFUSED-CLIENT"
