"""Against a server that we did not write: HAPI FHIR, built once by ``make fhir-server``, with all its habits."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fhir_lines_kit import KEY, observation, patient

from connector.fhir import Store, ingest
from connector.fhir.sources import SourceSettings, download, settle_pull
from connector.fhir.sources.pace import Pace
from vht_federate.processes import stop_process
from vht_federate.serving import free_port

FOLDER = Path(__file__).parent.parent / "servers" / "hapi-fhir"
JAR = FOLDER / "target" / "fhir-server-1.jar"
PATIENTS, VALUES = 20, 300

pytestmark = [
    pytest.mark.skipif(shutil.which("java") is None, reason="needs Java 17"),
    pytest.mark.skipif(not JAR.exists(), reason="the FHIR server is not built: make fhir-server"),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A running server with patients and values, several files per type."""
    port, log = free_port(), tmp_path_factory.mktemp("hapi") / "log"
    options = ["-Xmx1g", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    command = ["java", *options, "-cp", "target/fhir-server-1.jar:target/lib/*", "fhirserver.Main"]
    env = os.environ | {"FHIR_PORT": str(port), "FHIR_EXPORT_ROWS": "100"}
    with log.open("w") as out:
        process = subprocess.Popen(command, cwd=FOLDER, env=env, stdout=out, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 200
        while "FHIR server ready" not in log.read_text():
            assert process.poll() is None, log.read_text()[-2000:]
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.5)
        address = f"http://127.0.0.1:{port}/fhir"
        put(address, [patient(number) for number in range(PATIENTS)])
        put(address, [observation(f"o{number}", number % PATIENTS) for number in range(VALUES)])
        yield address
    finally:
        stop_process(process.pid, patience_s=10)
        process.wait()


def put(base: str, resources: list[dict[str, Any]]) -> None:
    entries = [
        {"resource": one, "request": {"method": "PUT", "url": f"{one['resourceType']}/{one['id']}"}}
        for one in resources
    ]
    bundle = {"resourceType": "Bundle", "type": "transaction", "entry": entries}
    httpx.post(base, json=bundle, timeout=120, trust_env=False).raise_for_status()


def source(base: str, **changes: Any) -> SourceSettings:
    fields = {"name": "hapi", "base_url": base, "types": ("Patient", "Observation"), "longest_poll_s": 1.0}
    return SourceSettings.model_validate(fields | changes)


def state(store: Path) -> dict[str, int]:
    generation = Store(store).current()
    assert generation is not None
    return generation.counts()


def test_export_in_both_ways_and_search_give_the_same_store_and_changes_come_alone(base: str, tmp_path: Path) -> None:
    settings = source(base)
    first = download(settings, tmp_path / "get", pace=Pace(240))
    assert (first.lines, first.files > 2) == (PATIENTS + VALUES, True)
    report = ingest(first.folder, tmp_path / "store", node_key=KEY, dataset="d")
    assert (report.accepted, report.quarantined) == (PATIENTS + VALUES, 0)
    for changes in ({"dialect": "post-comma"}, {"mode": "search", "page_size": 50}, {"level": "patient"}):
        other = download(source(base, **changes), tmp_path / str(sorted(changes)), pace=Pace(240))
        again = ingest(other.folder, tmp_path / "store", node_key=KEY, dataset="d")
        assert (again.duplicate, again.accepted, again.quarantined) == (PATIENTS + VALUES, 0, 0), changes
    settle_pull(settings, tmp_path / "get", first)
    put(base, [observation("o1", 1, valueQuantity={"value": 99, "unit": "mm[Hg]"}), observation("late")])
    second = download(settings, tmp_path / "get", pace=Pace(240))
    assert second.lines == 2
    newer = ingest(second.folder, tmp_path / "store", node_key=KEY, dataset="d")
    assert (newer.accepted, newer.replaced, newer.quarantined) == (2, 1, 0)
    assert state(tmp_path / "store") == {"Observation": VALUES + 1, "Patient": PATIENTS}


def test_a_patient_level_export_that_ignores_since_is_held_to_it_by_a_filter(base: str, tmp_path: Path) -> None:
    settings = source(base, level="patient", since_as_filter=True)
    settle_pull(settings, tmp_path, download(settings, tmp_path, pace=Pace(240)))
    time.sleep(1.1)
    put(base, [observation("filtered", 3)])
    assert download(settings, tmp_path, pace=Pace(240)).lines == 1
