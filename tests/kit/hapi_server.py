"""HAPI FHIR as a process, what it is loaded with, and what came out of it in comparable form."""

import json
import os
import re
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from connector.fhir.resources import TABLES
from connector.views import run
from connector.views.sql.shipped import names, shipped
from kit.places import ROOT
from vht_federate.processes import stop_process
from vht_federate.samples.generator import generate
from vht_federate.tcp_ports import free_port

__all__ = ["GSD", "SYNTHEA", "Hapi", "built", "delete", "generated", "put", "referenced", "synthea", "viewed"]

FOLDER = ROOT / "tests" / "servers" / "hapi-fhir"
JAR = FOLDER / "target" / "fhir-server-1.jar"
GSD = ROOT.parent / "shared" / "data" / "gsd_r4_ndjson.tgz"
SYNTHEA = ROOT / "out" / "synthea" / "fhir"
START_S, LOAD_S = 600.0, 300.0
TYPES = tuple(TABLES)
_SUBJECT = re.compile(rb'"subject": ?{"reference": ?"(?:urn:uuid:|Patient/)([^"]+)"')
_ID = re.compile(rb'"id": ?"([^"]+)"')
Resource = dict[str, Any]


def built() -> None:
    """Build the server where that has not been done; skips the test where it cannot be."""
    if shutil.which("java") is None:
        pytest.skip("needs a JDK 17")
    if JAR.exists():
        return
    if shutil.which("mvn") is None:
        pytest.skip("the FHIR server is not built, and Maven is missing")
    build = subprocess.run(["mvn", "-q", "-B", "package"], cwd=FOLDER, capture_output=True, timeout=550, check=False)
    if build.returncode:
        pytest.skip("the FHIR server cannot be built here: is Maven Central within reach?")


@dataclass
class Hapi:
    """A server on a port of its own. With a ``database`` it keeps its data over restarts."""

    log: Path
    database: str | None = None
    port: int = field(default_factory=free_port)
    process: "subprocess.Popen[bytes] | None" = None

    @property
    def base(self) -> str:
        return f"http://127.0.0.1:{self.port}/fhir"

    def start(self) -> None:
        """Returns when it answers."""
        options = ["-Xmx1g", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
        command = ["java", *options, "-cp", "target/fhir-server-1.jar:target/lib/*", "fhirserver.Main"]
        environment = {"FHIR_PORT": str(self.port), "FHIR_EXPORT_ROWS": "100"}
        if self.database:
            environment["FHIR_DB"] = self.database
        with self.log.open("wb") as out:
            self.process = subprocess.Popen(
                command, cwd=FOLDER, env=os.environ | environment, stdout=out, stderr=subprocess.STDOUT
            )
        deadline = time.monotonic() + START_S
        while b"FHIR server ready" not in self.log.read_bytes():
            assert self.process.poll() is None, self.log.read_text()[-2000:]
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.2)

    def kill(self) -> None:
        """As a power cut would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    @contextmanager
    def running(self) -> Iterator["Hapi"]:
        try:
            self.start()
            yield self
        finally:
            if self.process is not None and self.process.poll() is None:
                stop_process(self.process.pid, patience_s=10)
                self.process.wait()


def put(base: str, resources: list[Resource], *, at_once: int = 500) -> None:
    """Create or replace, by transaction Bundles; patients come first."""
    for start in range(0, len(resources), at_once):
        entries = [
            {"resource": resource, "request": {"method": "PUT", "url": f"{resource['resourceType']}/{resource['id']}"}}
            for resource in resources[start : start + at_once]
        ]
        bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
        httpx.post(base, content=orjson.dumps(bundle), headers={"Content-Type": "application/fhir+json"},
                   timeout=LOAD_S, trust_env=False).raise_for_status()  # fmt: skip


def delete(base: str, *names: str) -> None:
    for name in names:
        httpx.delete(f"{base}/{name}", timeout=60, trust_env=False).raise_for_status()


def generated(folder: Path, patients: int) -> list[Resource]:
    """One hospital of ``vht data generate``."""
    generate(folder, hospitals=1, patients=patients, seed=3, canaries=None)
    files = sorted((folder / "hospital-1").glob("*.ndjson"))
    return referenced([json.loads(line) for path in files for line in path.read_bytes().splitlines()])


def synthea(most: int) -> list[Resource]:
    """Whole patients of the cohort that ``make synthea`` makes, else of Synthea's sample export; skips without."""
    if SYNTHEA.is_dir():
        contents = {kind: (SYNTHEA / f"{kind}.ndjson").read_bytes() for kind in TYPES}
    elif GSD.is_file():
        contents = _sample_export()
    else:
        pytest.skip("no Synthea patients: make synthea")
    by_patient: dict[bytes, list[bytes]] = {}
    for content in contents.values():
        for line in content.splitlines():
            match = _SUBJECT.search(line) or _ID.search(line)
            assert match
            by_patient.setdefault(match[1], []).append(line)
    chosen: list[bytes] = []
    for several in sorted(by_patient.values(), key=len):
        if len(chosen) + len(several) > most:
            break
        chosen += several
    return referenced([json.loads(line) for line in chosen])


def _sample_export() -> dict[str, bytes]:
    contents = {}
    with tarfile.open(GSD) as archive:
        for member in archive:
            kind, file = Path(member.name).stem, archive.extractfile(member)
            if kind in TYPES and file is not None:
                contents[kind] = file.read()
    return contents


def _patient(resource: Resource) -> str:
    reference = resource.get("subject", {}).get("reference", resource["id"])
    return str(reference).removeprefix("urn:uuid:").removeprefix("Patient/")


def referenced(resources: list[Resource]) -> list[Resource]:
    """Patients first, then what is said of them: no other reference, which the server would want to resolve."""
    kept = []
    for resource in sorted(resources, key=lambda resource: TYPES.index(resource["resourceType"])):
        patient = _patient(resource)
        pruned = _without_references(resource)
        if resource["resourceType"] != "Patient":
            pruned["subject"] = {"reference": f"Patient/{patient}"}
        kept.append(pruned)
    return kept


def _without_references(value: Any) -> Any:
    if isinstance(value, list):
        return [child for child in map(_without_references, value) if child not in ({}, [])]
    if isinstance(value, dict):
        if "reference" in value:
            return {}
        pruned = {key: _without_references(child) for key, child in value.items() if key not in {"text", "contained"}}
        return {key: child for key, child in pruned.items() if child not in ({}, [])}
    return value


def viewed(folder: Path) -> bytes:
    """What every shipped view makes of the NDJSON in ``folder``, as JSON lines in order."""
    resources: dict[str, list[Resource]] = {}
    for path in sorted(folder.iterdir()):
        for line in path.read_bytes().splitlines():
            resource = json.loads(line)
            resources.setdefault(resource["resourceType"], []).append(resource)
    parts = []
    for name in names():
        view = shipped(name)
        rows = run(view, resources.get(view["resource"], []))
        parts += [name.encode(), *sorted(orjson.dumps(row, default=str) for row in rows)]
    return b"\n".join(parts)
