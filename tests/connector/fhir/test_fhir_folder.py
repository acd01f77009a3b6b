"""Everything in a folder is read, or named with the reason why not: nothing is passed over in silence."""

import gzip
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from kit.commands import vht_node
from kit.fhir_resources import KEY, ndjson, observation, patient, write
from kit.hospital import Hospital
from rich.console import Console

from connector.cli.output_tables import MOST_IGNORED, intake_table
from connector.fhir import IngestReport, Store, ingest
from connector.fhir.bundles import is_fhir
from connector.fhir.intake import installed_ports
from connector.fhir.observation_values import Units
from connector.fhir.quarantine_explanation import explain
from connector.fhir.quarantine_reasons import REASONS
from connector.fhir.source_folder import Ignored, look_into
from connector.listeners.internal import internal_app
from connector.node import Node
from vht_federate.domain.export_files import LINES
from vht_federate.errors import InputError
from vht_federate.testing.asgi import AppClient


def packed(content: bytes, name: str) -> bytes:
    if name.lower().endswith(".gz"):
        return gzip.compress(content)
    return pa.compress(content, codec="zstd", asbytes=True) if name.lower().endswith(".zst") else content


def take(folder: Path, tmp_path: Path) -> IngestReport:
    return ingest(folder, tmp_path / "store", node_key=KEY, dataset="d")


def late(entries: list[Any]) -> bytes:
    """A Bundle that says only at its end what it is."""
    plain = {"entry": [{"resource": dict(reversed(resource.items()))} for resource in entries], "type": "collection"}
    return json.dumps({"note": "x" * 5000, **plain, "resourceType": "Bundle"}).encode()


def test_every_ending_of_lines_and_bundles_is_read_in_either_case(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    names = [f"o{number}{ending}" for number, ending in enumerate((*LINES, ".json", ".json.gz", ".json.zst"))]
    for number, name in enumerate([*names, *(f"u{name.upper()}" for name in names)]):
        item = observation(f"o{number}")
        plain = late([item]) if ".json" in name.lower() and "jsonl" not in name.lower() else ndjson([item])
        (folder / name).write_bytes(packed(plain, name))
    report = take(folder, tmp_path)
    assert (report.accepted, report.reasons, report.ignored) == (18, {}, ())
    assert len(report.by_file) == 18
    again = take(folder, tmp_path)
    assert (again.duplicate, again.changed) == (18, False)


def clutter(folder: Path) -> dict[str, str]:
    """One of each that is not read, beside a patient; name and reason."""
    write(folder, "Patient.ndjson", [patient(1)])
    (folder / "notes.txt").write_text("x")
    for name in (".DS_Store", "._Patient.ndjson.gz", "Thumbs.db"):
        (folder / name).write_bytes(b"\x00\x05\x16\x07")
    write(folder / "__MACOSX", "._Patient.ndjson", [b"x"])
    (folder / "o.ndjson.bz2").write_bytes(b"x")
    (folder / "manifest.json").write_text('{"transactionTime": "2020", "output": [{"type": "Patient"}]}')
    (folder / "wrapped.json").write_text('{"data": {"resourceType": "Patient", "id": "p2"}}')
    (folder / "broken.json").write_text('{"transactionTime": ')
    write(folder / "more", "Observation.ndjson", [observation("o1")])
    (folder / "gone.ndjson").symlink_to(folder / "nowhere")
    os.mkfifo(folder / "pipe.ndjson")
    return {
        ".DS_Store": "system-file", "._Patient.ndjson.gz": "system-file", "Thumbs.db": "system-file",
        "__MACOSX": "system-file", "broken.json": "not-fhir", "gone.ndjson": "no-file", "manifest.json": "not-fhir",
        "more": "subfolder", "notes.txt": "other-ending", "o.ndjson.bz2": "other-ending", "pipe.ndjson": "no-file",
        "wrapped.json": "not-fhir",
    }  # fmt: skip


def test_whatever_is_not_read_is_listed_with_its_reason_and_counts_nowhere(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    wanted = clutter(folder)
    report = take(folder, tmp_path)
    assert [(entry.name, entry.reason) for entry in report.ignored] == sorted(wanted.items())
    assert set(wanted.values()) <= set(REASONS)
    assert (report.lines, report.accepted, len(report.by_file)) == (1, 1, 1)
    assert report.to_dict()["ignored"] == [{"name": name, "reason": why} for name, why in sorted(wanted.items())]
    alone = take(write(tmp_path / "alone", "Patient.ndjson", [patient(1)]), tmp_path)
    assert (alone.duplicate, alone.changed, alone.ignored) == (1, False, ())


def test_a_folder_of_nothing_else_is_refused_and_no_store_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    clutter(folder)
    (folder / "Patient.ndjson").unlink()
    with pytest.raises(InputError, match="holds no NDJSON"):
        take(folder, tmp_path)
    assert not (tmp_path / "store").exists()


def test_a_link_to_a_file_elsewhere_is_read(tmp_path: Path) -> None:
    target = write(tmp_path / "elsewhere", "a", [patient(1)]) / "a"
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "Patient.ndjson").symlink_to(target)
    assert take(folder, tmp_path).accepted == 1


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'[{"resourceType": "Patient"}]', "not-a-bundle"),
        (b' {"id": "p1", "resourceType": "Patient"}', "not-a-bundle"),
        (b'{"entry": [], "resourceType": "Bundle"', "malformed-json"),
        (b"x" * 5000 + b'"resourceType"', "malformed-json"),
    ],
)
def test_json_that_names_a_resource_anywhere_is_in_the_account(tmp_path: Path, content: bytes, reason: str) -> None:
    folder = write(tmp_path / "in", "a.json", [content])
    report = take(folder, tmp_path)
    assert (report.lines, report.reasons, report.ignored) == (1, {reason: 1}, ())


def test_a_damaged_bundle_is_named_as_a_damaged_file_of_lines_is(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", "a.ndjson", [patient(1)])
    content = late([observation(f"o{number}") for number in range(200)])
    (folder / "b.json.gz").write_bytes(gzip.compress(content)[:-40])
    (folder / "c.json.zst").write_bytes(b"this is no zstd")
    report = take(folder, tmp_path)
    assert report.reasons == {"gzip-truncated": 1, "zstd-corrupt": 1}
    assert [file.state for file in report.by_file] == ["ok", "gzip-truncated", "zstd-corrupt"]
    generation = Store(tmp_path / "store").current()
    assert generation is not None
    explanations = explain(generation.quarantine(), [folder], Units(installed_ports()))
    assert [explanation.source for explanation in explanations] == ["found", "found"]


def test_what_a_large_json_file_is_takes_no_more_memory_than_a_bundle_may(tmp_path: Path) -> None:
    limit = 1 << 20
    plain, named = tmp_path / "plain.json", tmp_path / "named.json"
    plain.write_bytes(b"[" + b"0," * (8 << 20) + b"0]")
    named.write_bytes(b"[" + b"0," * (8 << 20) + b'{"resourceType": "Patient"}]')
    squeezed = tmp_path / "squeezed.json.gz"
    squeezed.write_bytes(gzip.compress(plain.read_bytes()))
    tracemalloc.start()
    try:
        assert [is_fhir(path, limit=limit) for path in (plain, named, squeezed)] == [False, True, False]
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_the_order_of_entries_is_that_of_their_names(tmp_path: Path) -> None:
    for name in ("b.txt", "a.csv", "C.NDJSON", "c.ndjson"):
        write(tmp_path, name, [patient(1)])
    contents = look_into(tmp_path)
    assert [path.name for path in contents.files] == ["C.NDJSON", "c.ndjson"]
    assert contents.ignored == (Ignored("a.csv", "other-ending"), Ignored("b.txt", "other-ending"))


def test_the_table_names_the_first_and_counts_the_rest(tmp_path: Path) -> None:
    folder = write(tmp_path / "in", "a.ndjson", [patient(1)])
    for number in range(MOST_IGNORED + 5):
        (folder / f"other-{number:02d}.txt").touch()
    console = Console(width=200)
    with console.capture() as shown:
        console.print(intake_table(folder, take(folder, tmp_path).to_dict()))
    assert "other-00.txt" in shown.get()
    assert f"other-{MOST_IGNORED:02d}.txt" not in shown.get()
    assert str(MOST_IGNORED + 5) in shown.get()


def datasets_page(node: Node) -> str:
    node.accounts.add("Dr Ada", "approver", "correct horse")
    browser = AppClient(internal_app(node))
    browser.post("/login", data={"name": "Dr Ada", "password": "correct horse"})
    return browser.get("/datasets").text


def test_the_command_the_books_and_the_console_tell_what_was_ignored(hospital: Hospital) -> None:
    folder = hospital.root / "in"
    wanted = [{"name": name, "reason": why} for name, why in sorted(clutter(folder).items())]
    assert vht_node("ingest", hospital.state, folder)["ignored"] == wanted
    with hospital.open() as node:
        [intake] = node.overview.ingests()
        page = datasets_page(node)
    assert intake["ignored"] == wanted
    assert all(entry["name"] in page for entry in wanted[:5])
    assert "and 7 more" in page
