"""Faults at the door, all at once and one by one: every line accounted for, no empty row, a restart completes."""

import gzip
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kit.bulk_data_server import BulkServer
from kit.fhir_resources import KEY, condition, ndjson, observation, patient, prescription, quantity, write
from kit.places import TESTS

from connector.fhir import IngestReport, Store, ingest
from connector.fhir.sources import SourceSettings, download, pulling
from vht_federate.errors import UnavailableError

pytestmark = pytest.mark.faults

TABLES = ("patient", "observation", "condition", "medication_request", "encounter", "resource")
# A row of any table says at least this much; an Observation one value besides, or which code it had without one.
NEVER_NULL = {
    "patient": ("resource", "subject", "bucket", "active", "deceased"),
    "observation": ("resource", "subject", "status", "effective", "part"),
    "condition": ("resource", "subject", "onset", "code"),
    "medication_request": ("resource", "subject", "status", "intent", "prohibited", "authored", "code"),
    "encounter": ("resource", "subject", "status"),
    "resource": ("type", "resource", "content", "dataset"),
}


def rows(store: Path, table: str) -> list[dict[str, Any]]:
    generation = Store(store).current()
    return [row for part in generation.parts(table) for row in pq.read_table(part).to_pylist()] if generation else []


def contents(store: Path) -> dict[str, list[str]]:
    """All that the store holds, but for the intake that brought it and its order."""
    return {table: sorted(json.dumps(row, default=str) for row in rows(store, table)) for table in TABLES}


def quarantine(store: Path) -> list[dict[str, Any]]:
    generation = Store(store).current()
    return generation.quarantine() if generation else []


def accounted(report: IngestReport) -> None:
    assert report.lines == report.accepted + report.quarantined + report.duplicate + report.superseded
    for file in report.by_file:
        assert file.lines == file.accepted + file.quarantined + file.duplicate + file.superseded
    assert report.lines == sum(file.lines for file in report.by_file)
    assert report.quarantined == sum(report.reasons.values())
    assert report.values_quarantined == sum(report.value_reasons.values())


def no_null_row(store: Path) -> None:
    for table, names in NEVER_NULL.items():
        for row in rows(store, table):
            assert None not in [row[name] for name in names], table
    for row in rows(store, "observation"):
        present = [row[name] is not None for name in ("number", "truth", "value_code")]
        assert present.count(True) == 1 or (present.count(True) == 0 and row["code"] is not None)
        assert (row["number"] is None) == (row["unit"] is None)


def wrong_in_every_way(folder: Path) -> Path:
    """Forty patients, and each fault that an export may have, a few times."""
    write(folder, "Patient.ndjson", [*(patient(number) for number in range(40)), patient(3), b"", b'{"resourceType"'])
    mistake = {"coding": [{"code": "entered-in-error"}]}
    faulty = [condition("c9", "38341003", "2009", verificationStatus=mistake), condition("c10", "x", "nineteen")]
    write(folder, "Condition.ndjson", [condition(f"c{n}", "38341003", "2009", n) for n in range(9)] + faulty)
    write(folder, "MedicationRequest.ndjson", [prescription("m1", "C09AA05", "2009", status="entered-in-error")])
    readings = [observation(f"o{n}", n % 40) for n in range(600)]
    wrong = [
        observation("w1", valueQuantity=quantity("140", "mm[Hg]")),  # a string in a decimal
        observation("w2", valueQuantity=quantity(140, "furlong")),
        observation("w3", valueQuantity={"value": 140}),
        observation("w4", status="entered-in-error"),
        observation("o1", 1),  # a duplicate
        observation("o2", valueQuantity=quantity(7, "mm[Hg]")),  # a contradiction
        b"not json at all",
        observation("w5", meta={"versionId": "1"}, valueQuantity=quantity(1, "mm[Hg]")),
        observation("w5", meta={"versionId": "2"}, valueQuantity=quantity(2, "mm[Hg]")),
    ]
    write(folder, "Observation.ndjson", readings + wrong)
    more = ndjson(observation(f"g{n}", n % 40) for n in range(900))
    packed = gzip.compress(more)
    (folder / "Observation.1.ndjson.gz").write_bytes(packed[: len(packed) * 2 // 3])
    more = ndjson(observation(f"z{n}", n % 40, note=[{"text": str(n * 7919)}]) for n in range(10_000, 14_000))
    squeezed = pa.compress(more, codec="zstd", asbytes=True)
    (folder / "Observation.2.ndjson.zst").write_bytes(squeezed[: len(squeezed) * 9 // 10])
    entries = [{"resource": observation("b1")}, {"request": {"method": "DELETE", "url": "Patient/p9"}}]
    (folder / "more.json").write_text(json.dumps({"resourceType": "Bundle", "type": "batch", "entry": entries}))
    (folder / "Encounter.ndjson").write_bytes(b"")
    return folder


def test_every_fault_at_once_is_counted_and_named_and_mending_them_completes_the_store(tmp_path: Path) -> None:
    folder, store = wrong_in_every_way(tmp_path / "in"), tmp_path / "store"
    report = ingest(folder, store, node_key=KEY, dataset="d")
    accounted(report)
    no_null_row(store)
    states = {file.name: file.state for file in report.by_file}
    assert states["Observation.1.ndjson.gz"] == "gzip-truncated"
    assert states["Observation.2.ndjson.zst"] == "zstd-truncated"
    assert states["Encounter.ndjson"] == "empty"
    assert report.reasons == {
        "blank-line": 1, "conflicting-content": 1, "format": 1, "gzip-truncated": 1, "malformed-json": 2,
        "no-resource": 1, "type": 1, "zstd-truncated": 1,
    }  # fmt: skip
    assert report.value_reasons == {"missing-unit": 1, "unknown-unit": 1}
    assert (report.duplicate, report.superseded, report.entered_in_error) == (2, 1, 3)
    assert len(quarantine(store)) == report.quarantined + report.values_quarantined + 1  # and the empty file
    (folder / "Observation.1.ndjson.gz").write_bytes(
        gzip.compress(ndjson(observation(f"g{n}", n % 40) for n in range(900)))
    )
    again = ingest(folder, store, node_key=KEY, dataset="d")
    accounted(again)
    assert again.accepted == 900 - next(file.accepted for file in report.by_file if file.name.endswith("gz"))
    assert again.reasons == {reason: count for reason, count in report.reasons.items() if reason != "gzip-truncated"}


def test_a_folder_that_grows_is_read_on_where_a_line_was_half_written(tmp_path: Path) -> None:
    folder, store = tmp_path / "in", tmp_path / "store"
    whole = ndjson(observation(f"o{number}", number % 5) for number in range(50))
    write(folder, "Patient.ndjson", [patient(number) for number in range(5)])
    seen = 0
    for size in (0, 100, len(whole) // 2, len(whole) - 1, len(whole)):
        (folder / "Observation.ndjson").write_bytes(whole[:size])
        report = ingest(folder, store, node_key=KEY, dataset="d")
        accounted(report)
        stored = len(rows(store, "observation"))
        assert stored == whole[:size].count(b"\n") or size == len(whole) - 1
        assert report.duplicate == seen
        seen = stored + 5
    for number in range(2, 4):
        write(folder, f"Observation.{number}.ndjson", [observation(f"n{number}")])
        report = ingest(folder, store, node_key=KEY, dataset="d")
        assert (report.accepted, report.quarantined) == (1, 0)
    assert len(rows(store, "observation")) == 52
    no_null_row(store)


# Counts the calls of a whole intake, then forks one for each of many points among them and kills it there.
KILLED = """
import os, signal, sys
from pathlib import Path
import connector.fhir.merge, duckdb, pandas, pyarrow.parquet  # what each of them would load late is loaded once
import fhir.resources.R4B.observation, fhir.resources.R4B.patient
from connector.fhir import ingest
source, base, work, points = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])

def take(store, stop):
    seen = 0
    def count(frame, event, _):
        nonlocal seen
        if "/connector/fhir/" in frame.f_code.co_filename:
            seen += 1
            if seen == stop:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.setprofile(count)
    ingest(source, store, node_key=b"n" * 32, dataset="d")
    sys.setprofile(None)
    return seen

def forked(store, stop):
    import shutil
    shutil.copytree(base, store)
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.write(writing, str(take(store, stop)).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as told:
        total = told.read()
    return os.waitpid(child, 0)[1], int(total or 0)

_, total = forked(work / "whole", -1)
early = [total * number // points for number in range(1, points)]
late = [total - step for step in (2, 5, 9, 20, 40, 80, 160)]  # settling and publishing: few calls, long ones
for number, stop in enumerate([*early, *late]):
    status, _ = forked(work / str(number), stop)
    print(os.WTERMSIG(status), flush=True)
"""


@pytest.mark.slow("a process that is killed for each point")
def test_a_kill_at_any_point_leaves_the_last_complete_state_and_a_restart_completes(tmp_path: Path) -> None:
    folder, base, work = tmp_path / "in", tmp_path / "base", tmp_path / "work"
    write(folder, "a.ndjson", [patient(number) for number in range(30)] + [b"{"])
    write(folder, "b.ndjson.gz", [observation(f"o{number}", number % 30) for number in range(300)])
    ingest(
        write(tmp_path / "little", "a.ndjson", [patient(99), observation("old", 99)]), base, node_key=KEY, dataset="d"
    )
    work.mkdir()
    command = [sys.executable, "-c", KILLED, str(folder), str(base), str(work), "8"]
    signals = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()
    assert signals == ["9"] * 14
    before, after = contents(base), contents(work / "whole")
    assert before != after
    states = [contents(work / str(number)) for number in range(len(signals))]
    assert all(state in (before, after) for state in states)
    assert before in states
    assert after in states
    for number in (0, 4, 9, 13):
        report = ingest(folder, work / str(number), node_key=KEY, dataset="d")
        accounted(report)
        assert contents(work / str(number)) == after
        assert not (work / str(number) / "ingesting").exists()


def _own_disks() -> bool:
    """Can this user mount a small disk in a namespace of its own?"""
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", "/mnt"]
    return shutil.which("unshare") is not None and not subprocess.run(command, capture_output=True).returncode


SMALL_DISK = pytest.mark.skipif(not _own_disks(), reason="this machine lets nobody mount a disk of their own")

# A disk that is given more room from try to try; what it held at the end is copied out, as it goes with this process.
CROWDED = """
import shutil, subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from kit.full_disk_process import attempt
disk, out = Path(sys.argv[2]), Path(sys.argv[3])
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1k", "tmpfs", str(disk)], check=True)
for number, kilobytes in enumerate(map(int, sys.argv[4].split(","))):
    subprocess.run(["mount", "-o", f"remount,size={kilobytes}k", str(disk)], check=True)
    print(attempt(disk, sys.argv[5:]), flush=True)
    shutil.copytree(disk, out / str(number))
"""


def crowded(tmp_path: Path, sizes: list[int], *arguments: Any) -> list[str]:
    """What ``fhir_crowded.attempt`` says on a disk of so many kilobytes; what lay there then is in ``out/NUMBER``."""
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").mkdir()
    command = ["unshare", "-rm", sys.executable, "-c", CROWDED, str(TESTS)]
    command += [str(tmp_path / "disk"), str(tmp_path / "out"), ",".join(map(str, sizes)), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    return done.stdout.split()


@SMALL_DISK
def test_an_intake_on_a_full_disk_leaves_the_last_complete_state_and_completes_with_room(tmp_path: Path) -> None:
    items = [patient(number) for number in range(300)] + [observation(f"o{n}", n % 300) for n in range(3000)]
    folder = write(tmp_path / "in", "a.ndjson", [*items, b"{"])
    sizes = [8, 64, 200, 300, 400, 450, 500, 600, 5000]
    outcomes = crowded(tmp_path, sizes, "ingest", folder)
    assert outcomes[0] == "VHT-UNAVAILABLE-DISK"
    assert set(outcomes) == {"VHT-UNAVAILABLE-DISK", "3300"}
    assert outcomes[-1] == "3300"
    assert outcomes == sorted(outcomes, reverse=True), "more room never makes it worse"
    for number, outcome in enumerate(outcomes):
        store = tmp_path / "out" / str(number) / "store"
        assert len(rows(store, "observation")) == (3000 if outcome == "3300" else 0)
        assert not (store / "ingesting").exists()
    no_null_row(tmp_path / "out" / str(len(outcomes) - 1) / "store")


@pytest.fixture
def server() -> Iterator[BulkServer]:
    stamp = {"meta": {"lastUpdated": "2020-01-01T00:00:00+00:00"}}
    resources = {
        "Patient": [patient(number, **stamp) for number in range(20)],
        "Observation": [observation(f"o{number}", number % 20, **stamp) for number in range(3000)],
    }
    with BulkServer(resources, polls=0).running() as running:
        yield running


@SMALL_DISK
@pytest.mark.parametrize("mode", ["export", "search"])
def test_a_pull_that_fills_the_disk_goes_on_when_there_is_room(server: BulkServer, tmp_path: Path, mode: str) -> None:
    server.per_page = 500
    outcomes = crowded(tmp_path, [1, 16, 200, 600, 9000], "pull", server.base, mode)
    assert outcomes[:-1] == ["VHT-UNAVAILABLE-DISK"] * (len(outcomes) - 1)
    assert outcomes[-1] == "3020"
    folder = tmp_path / "out" / "4" / "run" / "data"
    lines = [line for path in folder.iterdir() for line in path.read_bytes().splitlines()]
    assert len({json.loads(line)["id"] for line in lines}) == len(lines) == 3020
    if mode == "export":
        assert len(server.jobs) <= 2, "once begun, the export is not asked for again"


def test_a_pull_says_in_words_that_the_disk_is_full(
    server: BulkServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = SourceSettings.model_validate({"name": "ehr", "base_url": server.base, "types": ("Patient",)})

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("os.fsync", full)
        with pytest.raises(UnavailableError) as caught, pulling(tmp_path):
            download(settings, tmp_path)
    assert caught.value.code == "VHT-UNAVAILABLE-DISK"
    with pulling(tmp_path):
        assert download(settings, tmp_path).lines == 20
