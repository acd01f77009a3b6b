"""Against a server that we did not write: HAPI FHIR with all its habits, filled with generated and Synthea patients."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from kit.fhir_resources import KEY, observation, patient
from kit.hapi_server import TYPES, Hapi, Resource, built, delete, generated, put, synthea, viewed
from kit.hospital import await_that

from connector.fhir import IngestReport, Store, ingest
from connector.fhir.rendering import resources
from connector.fhir.sources import Pulled, SourceSettings, download, settle_pull
from connector.fhir.sources.retry import RetryPolicy

GENERATED, OF_SYNTHEA = 8, 500
MANY_GENERATED, MANY_OF_SYNTHEA = 100, 4_000
PATIENCE_S = 240.0
WAYS: dict[str, dict[str, Any]] = {
    "system": {},
    "patient": {"level": "patient", "since_as_filter": True},
    "search": {"mode": "search", "page_size": 100},
}

pytestmark = [pytest.mark.faults, pytest.mark.slow("a Java server that starts twice, and is built where it is not")]


@dataclass
class Loaded:
    server: Hapi
    resources: list[Resource]

    @property
    def lines(self) -> int:
        return len(self.resources)


def source(base: str, **changes: Any) -> SourceSettings:
    fields = {"name": "hapi", "base_url": base, "types": TYPES, "longest_poll_s": 0.5, "deletions": "history"}
    return SourceSettings.model_validate(fields | changes)


def take_in(pulled: Pulled, store: Path) -> IngestReport:
    return ingest(pulled.folder, store, node_key=KEY, dataset="d", deletions=pulled.deletions, sample_size=0)


def held(store: Path) -> bytes:
    """All that the store holds, as FHIR, but for when it came."""
    current = Store(store).current()
    assert current is not None
    lines = [json.dumps({**resource, "meta": None}) for kind in TYPES for resource in resources(current, kind)]
    return "\n".join(lines).encode()


def load(server: Hapi, folder: Path, patients: int, of_synthea: int) -> Loaded:
    all_resources = generated(folder, patients) + synthea(of_synthea)
    all_resources.sort(key=lambda resource: TYPES.index(resource["resourceType"]))
    put(server.base, all_resources)
    return Loaded(server, all_resources)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    built()
    root = tmp_path_factory.mktemp("hapi")
    with Hapi(root / "log", database=f"jdbc:h2:file:{root / 'db'}").running() as server:
        yield load(server, root / "generated", GENERATED, OF_SYNTHEA)


def written(loaded: Loaded, folder: Path) -> Path:
    """What the server was given, as NDJSON."""
    folder.mkdir()
    (folder / "all.ndjson").write_text("".join(json.dumps(resource) + "\n" for resource in loaded.resources))
    return folder


def the_ways_agree(loaded: Loaded, root: Path) -> None:
    given, stores, pulls = viewed(written(loaded, root / "given")), {}, {}
    for way, changes in WAYS.items():
        settings = source(loaded.server.base, **changes)
        first = pulls[way] = download(settings, root / way, pace=RetryPolicy(PATIENCE_S))
        assert (first.lines, first.resumed) == (loaded.lines, False), way
        assert viewed(first.folder) == given, way
        report = take_in(first, root / f"store-{way}")
        assert (report.accepted + report.quarantined, report.duplicate) == (loaded.lines, 0)
        stores[way] = held(root / f"store-{way}")
        settle_pull(settings, root / way, first)
    assert pulls["system"].files > len(TYPES)
    assert len(set(stores.values())) == 1


def changes_come_alone(loaded: Loaded, root: Path) -> None:
    """After ``the_ways_agree``: one new, one changed, one deleted, one made again."""
    base = loaded.server.base
    time.sleep(1.1)  # a search goes by the server's Date, which counts whole seconds
    put(base, [patient(900), observation("fresh", 900), observation("again", 900), observation("gone", 900)])
    delete(base, "Observation/gone", "Observation/again")
    put(base, [observation("fresh", 900, valueQuantity=None) | {"valueInteger": 7}, observation("again", 900)])
    stores = set()
    for way, changes in WAYS.items():
        settings = source(base, **changes)
        pulled = download(settings, root / way, pace=RetryPolicy(PATIENCE_S))
        assert (pulled.lines, pulled.since is not None) == (3, True), way
        assert pulled.deleted == 2, way
        report = take_in(pulled, root / f"store-{way}")
        assert (report.accepted, report.deleted, report.duplicate) == (3, 0, 0), way
        settle_pull(settings, root / way, pulled)
    delete(base, "Observation/fresh", "Observation/again", "Patient/p900")
    for way in ("system", "search"):
        settings = source(base, **WAYS[way])
        pulled = download(settings, root / way, pace=RetryPolicy(PATIENCE_S))
        assert take_in(pulled, root / f"store-{way}").deleted == 3, way
        settle_pull(settings, root / way, pulled)
        stores.add(held(root / f"store-{way}"))
    assert len(stores) == 1


def test_every_way_gives_one_store_and_one_output_of_the_views_and_changes_come_alone(
    loaded: Loaded, tmp_path: Path
) -> None:
    the_ways_agree(loaded, tmp_path)
    changes_come_alone(loaded, tmp_path)


@pytest.mark.servers
def test_a_patient_level_export_that_ignores_since_brings_all_again_and_changes_nothing(
    loaded: Loaded, tmp_path: Path
) -> None:
    settings = source(loaded.server.base, level="patient")
    first = download(settings, tmp_path, pace=RetryPolicy(PATIENCE_S))
    take_in(first, tmp_path / "store")
    before = held(tmp_path / "store")
    settle_pull(settings, tmp_path, first)
    again = download(settings, tmp_path, pace=RetryPolicy(PATIENCE_S))
    assert again.since is not None
    assert again.lines == first.lines
    report = take_in(again, tmp_path / "store")
    assert (report.duplicate + report.quarantined, report.changed) == (first.lines, False)
    assert held(tmp_path / "store") == before


CLIENT = """
import sys, time
from pathlib import Path
from connector.fhir.sources import SourceSettings, download
from connector.fhir.sources import downloaded_files, pull
from connector.fhir.sources.retry import RetryPolicy

def stop(*_):
    Path(sys.argv[3]).touch()
    time.sleep(600)

fetched = downloaded_files.Files._fetch
def fetch(self, number):
    if number == 3:
        stop()
    fetched(self, number)

if sys.argv[4] == "download":
    downloaded_files.Files._fetch = fetch
else:
    pull.await_manifest = stop
download(SourceSettings.read(Path(sys.argv[1])), Path(sys.argv[2]), pace=RetryPolicy(600))
"""


def killed_client(loaded: Loaded, root: Path, at: str) -> tuple[SourceSettings, Path]:
    """A client that was ended by SIGKILL: while it waited for the manifest, or in the midst of the files."""
    toml, home, here = root / f"{at}.toml", root / at, root / f"{at}.here"
    types = ", ".join(f'"{kind}"' for kind in TYPES)
    toml.write_text(f'name = "hapi"\nbase_url = "{loaded.server.base}"\ntypes = [{types}]\nlongest_poll_s = 0.5\n')
    client = subprocess.Popen([sys.executable, "-c", CLIENT, str(toml), str(home), str(here), at])
    try:
        await_that(lambda: here.exists() or client.poll() is not None, PATIENCE_S)
        assert client.poll() is None
    finally:
        client.kill()
        client.wait()
    return SourceSettings.read(toml), home


@pytest.mark.parametrize("at", [pytest.param("poll", marks=pytest.mark.servers), "download"])
def test_a_client_killed_in_mid_export_goes_on_with_the_same_job(loaded: Loaded, tmp_path: Path, at: str) -> None:
    settings, home = killed_client(loaded, tmp_path, at)
    job = json.loads((home / "run" / "progress.json").read_text())["status_url"]
    mtimes = {path.name: path.stat().st_mtime_ns for path in (home / "run" / "data").iterdir()}
    pulled = download(settings, home, pace=RetryPolicy(PATIENCE_S))
    progress = json.loads((home / "run" / "progress.json").read_text())
    assert (pulled.resumed, progress["status_url"]) == (True, job)
    assert len(mtimes) == (3 if at == "download" else 0)
    assert {name: (pulled.folder / name).stat().st_mtime_ns for name in mtimes} == mtimes
    assert viewed(pulled.folder) == viewed(written(loaded, tmp_path / "given"))


def a_server_killed_is_asked_on(loaded: Loaded, root: Path, at: str) -> None:
    settings, home = killed_client(loaded, root, at)
    loaded.server.kill()
    loaded.server.start()
    pulled = download(settings, home, pace=RetryPolicy(600.0))
    assert viewed(pulled.folder) == viewed(written(loaded, root / "given"))


def test_a_server_killed_in_mid_export_is_asked_on_after_its_restart(loaded: Loaded, tmp_path: Path) -> None:
    a_server_killed_is_asked_on(loaded, tmp_path, "download")


# --- more of it: make test-servers ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    """Thousands of resources, in a database that outlives the process."""
    built()
    root = tmp_path_factory.mktemp("crowded")
    with Hapi(root / "log", database=f"jdbc:h2:file:{root / 'db'}").running() as server:
        yield load(server, root / "generated", MANY_GENERATED, MANY_OF_SYNTHEA)


@pytest.mark.servers
def test_thousands_of_resources_come_the_same_in_every_way(crowded: Loaded, tmp_path: Path) -> None:
    assert crowded.lines > 5_000
    the_ways_agree(crowded, tmp_path)
    changes_come_alone(crowded, tmp_path)


@pytest.mark.servers
@pytest.mark.parametrize("at", ["poll", "download"])
def test_a_server_of_thousands_killed_in_mid_export_is_asked_on(crowded: Loaded, tmp_path: Path, at: str) -> None:
    a_server_killed_is_asked_on(crowded, tmp_path, at)
