"""Intake: every line and every value accounted for; nothing that identifies passes the door."""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kit.broken_resources import BROKEN, VALUES
from kit.fhir_resources import KEY, LOINC, condition, ndjson, observation, patient, prescription, quantity, write

from connector.fhir import IngestReport, Store, dataset_summary, ingest, subject_key
from vht_federate.domain.split import bucket_of
from vht_federate.errors import InputError, UnavailableError
from vht_federate.samples.generator import generate


def take(tmp_path: Path, items: list[Any], name: str = "data.ndjson") -> IngestReport:
    return ingest(write(tmp_path / "in", name, items), tmp_path / "store", node_key=KEY, dataset="d")


def quarantine(tmp_path: Path) -> list[dict[str, Any]]:
    generation = Store(tmp_path / "store").current()
    assert generation is not None
    return generation.quarantine()


def rows(store: Path, table: str) -> list[dict[str, Any]]:
    generation = Store(store).current()
    assert generation is not None
    return [row for part in generation.parts(table) for row in pq.read_table(part).to_pylist()]


def balanced(report: IngestReport) -> bool:
    return (
        report.lines == report.accepted + report.quarantined + report.duplicate
        and report.quarantined == sum(report.reasons.values())
        and report.values_quarantined == sum(report.value_reasons.values())
        and report.lines == sum(file.lines for file in report.by_file)
        and report.accepted == sum(report.by_type.values())
    )


def test_each_broken_line_is_quarantined_with_its_number_reason_and_path(tmp_path: Path) -> None:
    report = take(tmp_path, [item for item, _, _ in BROKEN] + [patient(2)])
    assert (report.lines, report.quarantined, report.accepted) == (len(BROKEN) + 1, len(BROKEN), 1)
    assert balanced(report)
    listed = [(entry["line"], entry["reason"], entry["path"]) for entry in quarantine(tmp_path)]
    assert listed == [(number, reason, path) for number, (_, reason, path) in enumerate(BROKEN, 1)]
    assert {entry["file"] for entry in quarantine(tmp_path)} == {"data.ndjson"}


def test_a_value_that_cannot_be_used_is_quarantined_and_its_line_kept(tmp_path: Path) -> None:
    report = take(tmp_path, [observation(f"o{n}", **more) for n, (more, _) in enumerate(VALUES)])
    refused = [(number, reason) for number, (_, reason) in enumerate(VALUES, 1) if reason]
    assert report.accepted == report.lines == len(VALUES)
    assert report.values_quarantined == len(refused)
    assert report.values_accepted == len(VALUES) - len(refused)
    assert balanced(report)
    entries = quarantine(tmp_path)
    assert [(entry["line"], entry["reason"]) for entry in entries] == refused
    assert all(entry["kind"] == "value" for entry in entries)
    stored = rows(tmp_path / "store", "observation")
    valued = [row for row in stored if any(row[name] is not None for name in ("number", "truth", "value_code"))]
    assert len(stored) == len(VALUES)  # that it was observed is kept
    assert len(valued) == len(VALUES) - len(refused)


def test_each_component_of_a_panel_is_a_value_of_its_own(tmp_path: Path) -> None:
    def part(code: str, unit: str) -> dict[str, Any]:
        return {"code": {"coding": [{"system": LOINC, "code": code}]}, "valueQuantity": quantity(90, unit)}

    panel = observation("o", valueQuantity=None, component=[part("8480-6", "mm[Hg]"), part("8480-6", "stone")])
    report = take(tmp_path, [panel])
    assert (report.accepted, report.values_accepted, report.values_quarantined) == (1, 1, 1)
    assert quarantine(tmp_path)[0]["path"] == "Observation.component.valueQuantity"


def test_references_of_the_three_usual_kinds_name_the_same_patient(tmp_path: Path) -> None:
    kinds = ("Patient/p1", "urn:uuid:p1", "https://fhir.example/r4/Patient/p1", "Patient/p1/_history/3")
    take(tmp_path, [observation(f"o{n}", subject={"reference": kind}) for n, kind in enumerate(kinds)])
    assert {row["subject"] for row in rows(tmp_path / "store", "observation")} == {subject_key(KEY, "p1")}


def test_the_bucket_is_computed_at_the_door(tmp_path: Path) -> None:
    take(tmp_path, [patient(5)])
    [row] = rows(tmp_path / "store", "patient")
    assert (row["subject"], row["bucket"]) == (subject_key(KEY, "p5"), bucket_of("p5"))


def test_an_empty_file_a_gzip_and_a_truncated_gzip_are_accounted_for(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", "a.ndjson.gz", [patient(1)])
    (folder / "empty.ndjson").write_bytes(b"")
    packed = gzip.compress(ndjson(observation(f"o{n}") for n in range(2000)))
    (folder / "cut.ndjson.gz").write_bytes(packed[: len(packed) // 2])
    report = ingest(folder, tmp_path / "store", node_key=KEY, dataset="d")
    states = {file.name: (file.state, file.lines > 0) for file in report.by_file}
    assert states == {
        "a.ndjson.gz": ("ok", True),
        "cut.ndjson.gz": ("gzip-truncated", True),
        "empty.ndjson": ("empty", False),
    }
    assert balanced(report)
    assert report.reasons == {"gzip-truncated": 1}
    listed = {(entry["file"], entry["kind"], entry["reason"]) for entry in quarantine(tmp_path)}
    assert listed == {("cut.ndjson.gz", "line", "gzip-truncated"), ("empty.ndjson", "file", "empty-file")}


def test_a_folder_without_ndjson_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no NDJSON"):
        ingest(tmp_path, tmp_path / "store", node_key=KEY, dataset="d")
    with pytest.raises(InputError, match="not a folder"):
        ingest(tmp_path / "nowhere", tmp_path / "store", node_key=KEY, dataset="d")


def state_of(store: Path) -> dict[str, bytes]:
    return {str(path.relative_to(store)): path.read_bytes() for path in sorted(store.rglob("*")) if path.is_file()}


def test_reading_the_same_data_again_changes_nothing(tmp_path: Path) -> None:
    items = [patient(1), b"oops", observation("o1"), observation("o2", valueQuantity=quantity(1, "stone"))]
    first = take(tmp_path, items)
    before = state_of(tmp_path / "store")
    second = take(tmp_path, items)
    assert state_of(tmp_path / "store") == before
    assert (first.changed, second.changed) == (True, False)
    assert (second.accepted, second.duplicate, second.quarantined) == (0, 3, 1)
    assert (second.values_accepted, second.values_quarantined, second.patients) == (0, 0, 1)
    assert balanced(second)


def test_a_repetition_is_a_duplicate_and_a_contradiction_is_quarantined(tmp_path: Path) -> None:
    other = observation("o1", valueQuantity=quantity(999, "mm[Hg]"))
    reordered = dict(reversed(observation("o1").items()))
    report = take(tmp_path, [observation("o1"), reordered, other])
    assert (report.accepted, report.duplicate, report.reasons) == (1, 1, {"conflicting-content": 1})
    later = take(tmp_path, [other, observation("o2")])
    assert (later.accepted, later.reasons) == (1, {"conflicting-content": 1})
    assert [row["number"] for row in rows(tmp_path / "store", "observation")] == [140.0, 140.0]


def test_new_data_joins_the_old_and_the_list_of_quarantined_lines_grows(tmp_path: Path) -> None:
    take(tmp_path, [patient(1), b"oops"])
    report = take(tmp_path, [patient(1), patient(2), b"oops", b"again"])
    assert (report.accepted, report.duplicate, report.patients) == (1, 1, 2)
    assert [entry["line"] for entry in quarantine(tmp_path)] == [2, 3, 4]


def test_a_whole_new_export_takes_the_place_of_the_old(tmp_path: Path) -> None:
    wrong, right = observation("o1", valueQuantity=quantity(18, "kPa-ish")), observation("o1")
    take(tmp_path, [patient(1), patient(2), wrong, b"{"], "old.ndjson")
    assert quarantine(tmp_path)
    (tmp_path / "in" / "old.ndjson").unlink()
    corrected = [patient(1), right]
    folder = write(tmp_path / "in", "new.ndjson", corrected)
    refused = ingest(folder, tmp_path / "store", node_key=KEY, dataset="d")
    assert refused.reasons == {"conflicting-content": 1}
    replaced = ingest(folder, tmp_path / "store", node_key=KEY, dataset="d", replace=True)
    assert (replaced.accepted, replaced.patients, replaced.reasons) == (2, 1, {})
    assert quarantine(tmp_path) == []
    assert [row["unit"] for row in rows(tmp_path / "store", "observation")] == ["mm[Hg]"]
    assert take(tmp_path, corrected, "new.ndjson").duplicate == 2
    assert take(tmp_path, [patient(3)], "more.ndjson").patients == 2


def test_two_ingests_at_once_do_not_mix(tmp_path: Path) -> None:
    with Store(tmp_path / "store").writing(), pytest.raises(UnavailableError):
        take(tmp_path, [patient(1)])
    assert take(tmp_path, [patient(1)]).accepted == 1


def test_the_store_is_for_its_owner_alone(tmp_path: Path) -> None:
    take(tmp_path, [patient(1)])
    assert (tmp_path / "store").stat().st_mode & 0o077 == 0


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["coding", "code", "system", "value", "unit", "reference", "start", "modifierExtension"])
            | st.text(max_size=4),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_json_at_all_escapes_the_account(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    bases = [patient(1), observation("o"), condition("c", "1", "2009"), prescription("m", "1", "2009")]
    lines: list[Any] = []
    for number in range(data.draw(st.integers(4, 16))):
        base = dict(data.draw(st.sampled_from(bases))) | {"id": f"r{number}"}
        for key in data.draw(st.lists(st.sampled_from(sorted(base)), max_size=2)):
            base[key] = data.draw(JSON)
        lines.append(data.draw(st.sampled_from([base, b"{", data.draw(JSON)])))
    folder = tmp_path_factory.mktemp("any")
    report = ingest(write(folder / "in", "x.ndjson", lines), folder / "store", node_key=KEY, dataset="d")
    assert report.lines == len(lines)
    assert balanced(report)


def test_no_canary_passes_the_door(tmp_path: Path) -> None:
    generate(tmp_path / "in", hospitals=1, patients=30, seed=9, canaries=tmp_path / "canaries.txt")
    folder = tmp_path / "in" / "hospital-1"
    with (folder / "Observation.ndjson").open("ab") as more:
        more.write(b'{"resourceType":"Observation","id":"CANARY-broken"\n')
        more.write(ndjson([observation("CANARY-x", valueQuantity=None, valueString="CANARY-text")]))
        more.write(ndjson([observation("CANARY-y", valueQuantity=quantity(1, "CANARY-unit"), status="CANARY")]))
        more.write(ndjson([observation("CANARY-z", valueQuantity=quantity(1, "CANARY-unit"))]))
    report = ingest(folder, tmp_path / "store", node_key=KEY, dataset="d")
    assert report.accepted > 500
    assert (report.quarantined, report.values_quarantined) == (2, 2)
    planted = [text.encode() for text in (tmp_path / "canaries.txt").read_text().splitlines()] + [b"CANARY"]
    cells = json.dumps(
        [rows(tmp_path / "store", table) for table in ("patient", "observation", "resource")], default=str
    )
    everything = (
        b"".join(state_of(tmp_path / "store").values()) + cells.encode() + json.dumps(report.to_dict()).encode()
    )
    assert not [text for text in planted if text in everything]


INGEST = """
import sys; from pathlib import Path; from connector.fhir import ingest
print("begun", flush=True)
ingest(Path(sys.argv[1]), Path(sys.argv[2]), node_key=b"n" * 32, dataset="d")
"""


@pytest.mark.faults
def test_a_kill_in_the_middle_leaves_the_last_complete_state(tmp_path: Path) -> None:
    generate(tmp_path / "in", hospitals=1, patients=150, seed=2)
    folder, store = tmp_path / "in" / "hospital-1", tmp_path / "store"
    ingest(write(tmp_path / "little", "a.ndjson", [patient(1)]), store, node_key=KEY, dataset="d")
    before = rows(store, "patient")
    for number in range(3):
        command = [sys.executable, "-c", INGEST, str(folder), str(store)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(0.02 + 0.12 * number)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()
        assert rows(store, "patient")[:1] == before
        assert len(rows(store, "patient")) in (1, 151)
    ingest(folder, store, node_key=KEY, dataset="d")
    ingest(folder, tmp_path / "calm", node_key=KEY, dataset="d")
    for table in ("observation", "condition", "encounter"):
        assert rows(store, table) == rows(tmp_path / "calm", table)
    assert len(rows(store, "patient")) == 151


# Forks a publication for each file operation that it does, and kills it just before that operation.
CRASHES = """
import os, shutil, signal, sys; from pathlib import Path; from connector.fhir import Store
base, work = map(Path, sys.argv[1:])
for stop in range(1, 1000):
    folder = work / str(stop)
    shutil.copytree(base, folder)
    child = os.fork()
    if not child:
        seen = [0]
        def count(event, arguments):
            if event.startswith(("open", "os.", "shutil.")) and str(folder) in str(arguments):
                writes = event == "open" and "w" in str(arguments[1])
                assert not (writes and str(arguments[0]).endswith("/CURRENT")), "the pointer is replaced, never written"
                seen[0] += 1
                if seen[0] == stop:
                    os.kill(os.getpid(), signal.SIGKILL)
        with Store(folder).writing() as place:
            fresh = place / "fresh"
            fresh.mkdir()
            (fresh / "patient-000002.parquet").write_bytes(b"second")
            sys.addaudithook(count)
            Store(folder).publish(fresh)
            os._exit(0)
    status = os.waitpid(child, 0)[1]
    print("whole" if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 0 else "killed", flush=True)
    if os.WIFEXITED(status):
        break
"""


@pytest.mark.faults
def test_a_kill_before_any_operation_of_publishing_leaves_the_old_state_or_the_new(tmp_path: Path) -> None:
    take(tmp_path, [patient(1), observation("o1")])
    (tmp_path / "work").mkdir()
    command = [sys.executable, "-c", CRASHES, str(tmp_path / "store"), str(tmp_path / "work")]
    outcomes = subprocess.run(command, capture_output=True, check=True, text=True).stdout.split()
    assert outcomes[-1] == "whole"
    assert outcomes.count("killed") >= 15
    counts = []
    for number in range(1, len(outcomes) + 1):
        generation = Store(tmp_path / "work" / str(number)).current()
        assert generation is not None
        assert len(generation.parts("observation")) == 1
        counts.append(len(generation.parts("patient")))
    assert set(counts) == {1, 2}
    assert counts == sorted(counts)
    killed = tmp_path / "work" / str(len(outcomes) // 2)
    assert ingest(write(tmp_path / "in", "data.ndjson", [patient(3)]), killed, node_key=KEY, dataset="d").accepted == 1


def test_the_catalogue_sees_tens_and_nothing_below_ten(tmp_path: Path) -> None:
    assert dataset_summary(tmp_path / "store")["patients_rounded"] is None
    take(tmp_path, [*(patient(n) for n in range(36)), *(observation(f"o{n}") for n in range(7))])
    summary = dataset_summary(tmp_path / "store")
    assert summary["patients_rounded"] == 40
    assert summary["resources_rounded"]["Observation"] is None


def test_the_listing_names_as_many_values_as_the_report_counts(tmp_path: Path) -> None:
    parts = [
        {"code": {"coding": [{"system": LOINC, "code": code}]}, "valueString": "a"} for code in ("8480-6", "8462-4")
    ]
    panel = observation("o1", valueQuantity=None, component=parts)
    for _ in range(2):  # the same again is the same
        report = ingest(
            write(tmp_path / "in", "x.ndjson", [patient(1), panel]), tmp_path / "again", node_key=KEY, dataset="d"
        )
    assert report.duplicate == 2
    report = take(tmp_path, [patient(1), panel])
    values = [entry for entry in quarantine(tmp_path) if entry["kind"] == "value"]
    assert len(values) == report.values_quarantined == 2
    assert {entry["path"] for entry in values} == {"Observation.component.valueString"}
    generation = Store(tmp_path / "again").current()
    assert generation is not None
    assert len(generation.quarantine()) == 2
    assert generation.number == 1
