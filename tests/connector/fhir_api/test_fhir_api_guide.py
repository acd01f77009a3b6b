"""The commands of docs/guides/local-fhir-api.md, one block after the other, against a node in a process of its own."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.fhir_resources import UCUM
from kit.hospital import Hospital
from kit.places import ROOT

GUIDE = ROOT / "docs" / "guides" / "local-fhir-api.md"
BIN = Path(sys.executable).parent


@pytest.fixture
def desk(stocked: Hospital, tmp_path: Path) -> Iterator[Path]:
    """A folder with what the guide takes for granted; the node runs."""
    folder = tmp_path / "desk"
    folder.mkdir()
    (folder / "permit.jwt").write_text(stocked.permit())
    with stocked.open(start=False) as node:
        node.accounts.add("Dr Ada", "approver", "correct horse")
    shutil.copy(stocked.tls.ca, folder / "ca.crt")
    (folder / "STATE").symlink_to(stocked.state)
    node = subprocess.Popen([BIN / "vht", "node", "serve", stocked.state], stderr=subprocess.DEVNULL)
    try:
        subprocess.run([BIN / "vht", "node", "status", stocked.state, "--wait", "120"], check=True, capture_output=True)
        yield folder
    finally:
        node.terminate()
        node.wait(300)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("openssl")), reason="needs curl and openssl")
def test_the_guide_walks_from_a_key_to_rows(desk: Path) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", GUIDE.read_text(), re.S)
    assert len(blocks) == 7
    script = "set -euo pipefail\n" + "\n".join(blocks)
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    completed = subprocess.run(
        ["bash", "-c", script], cwd=desk, capture_output=True, text=True, timeout=1500, env={**os.environ, "PATH": path}
    )
    assert completed.returncode == 0, completed.stdout[-2000:] + completed.stderr[-2000:]
    assert f'"system":"{UCUM}"' in completed.stdout
    patients, values = lines(desk / "Patient.0001.ndjson"), lines(desk / "Observation.0001.ndjson")
    assert (len(patients), len(values)) == (40, 40)
    rows = list(csv.DictReader((desk / "rows.csv").read_text().splitlines()))
    assert {row["patient"] for row in rows} == {patient["id"] for patient in patients}
    events = json.loads((desk / "events.json").read_text())["data"]["events"]
    assert [event["subtype"][0]["display"] for event in events][:2] == ["view", "export-cancel"]
