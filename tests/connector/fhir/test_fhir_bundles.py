"""Bundles and zstd: the same resources in another wrapping are the same store."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.fhir_resources import KEY, ndjson, observation, patient, write

from connector.fhir import IngestReport, ingest
from connector.fhir.bundles import TYPES, read_bundle
from connector.fhir.ndjson import Line, encoding_fault, read_lines, without_mark
from vht_federate.errors import InputError


def bundle(entries: list[Any], kind: str = "collection") -> dict[str, Any]:
    return {"resourceType": "Bundle", "type": kind, "entry": entries}


def take(tmp_path: Path, content: Any, name: str = "data.json") -> IngestReport:
    folder = tmp_path / "in"
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return ingest(folder, tmp_path / "store", node_key=KEY, dataset="d")


@pytest.mark.parametrize("kind", sorted(TYPES))
def test_a_bundle_is_its_entries(tmp_path: Path, kind: str) -> None:
    items = [patient(1), observation("o1"), observation("o2")]
    report = take(tmp_path, bundle([{"resource": resource} for resource in items], kind))
    assert (report.lines, report.accepted, report.patients) == (3, 3, 1)
    lines = ingest(write(tmp_path / "lines", "a.ndjson", items), tmp_path / "store", node_key=KEY, dataset="d")
    assert (lines.duplicate, lines.changed) == (3, False)


def test_each_entry_that_is_no_resource_is_accounted_for(tmp_path: Path) -> None:
    entries = [
        {"resource": patient(1)},
        {"request": {"method": "DELETE", "url": "Patient/p2"}},
        "nonsense",
        {"resource": observation("o1", status="done")},
        {"resource": {"resourceType": "OperationOutcome"}, "search": {"mode": "outcome"}},
        {"resource": [1]},
    ]
    report = take(tmp_path, bundle(entries))
    assert (report.lines, report.accepted) == (6, 1)
    assert report.reasons == {"no-resource": 3, "code": 1, "unsupported-type": 1}


def test_a_modifier_extension_in_a_bundle_is_refused_as_in_a_line(tmp_path: Path) -> None:
    content = json.dumps(bundle([{"resource": patient(1, modifierExtension=[{"url": "urn:x"}])}]))
    report = take(tmp_path, content.replace("modifierExt", "modifier\\u0045xt").encode())
    assert report.reasons == {"modifier-extension": 1}


def test_a_reference_by_full_url_finds_its_patient(tmp_path: Path) -> None:
    entries = [
        {"fullUrl": "urn:uuid:11111111-1111-1111-1111-111111111111", "resource": patient(1)},
        {"resource": observation("o1", subject={"reference": "urn:uuid:11111111-1111-1111-1111-111111111111"})},
    ]
    take(tmp_path, bundle(entries, "transaction"))
    plain = [patient(1), observation("o1")]
    again = ingest(write(tmp_path / "lines", "a.ndjson", plain), tmp_path / "store", node_key=KEY, dataset="d")
    assert again.duplicate == 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"resourceType": "Bundle", "type": "collection", "entry": [', "malformed-json"),
        ({"resourceType": "Patient", "id": "p1"}, "not-a-bundle"),
        (bundle([], "message"), "bundle-type"),
        ({"resourceType": "Bundle", "entry": []}, "bundle-type"),
        (bundle({"resource": {}}), "malformed-json"),  # type: ignore[arg-type]
        ([{"resourceType": "Patient"}], "not-a-bundle"),
    ],
)
def test_a_file_that_is_no_bundle_is_one_line_that_says_so(tmp_path: Path, content: Any, reason: str) -> None:
    report = take(tmp_path, content)
    assert (report.lines, report.reasons) == (1, {reason: 1})


def test_a_bundle_too_large_for_the_memory_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "b.json"
    path.write_text(json.dumps(bundle([{"resource": patient(1)}])))
    assert list(read_bundle(path, limit=50)) == [Line(1, fault="bundle-too-long")]
    assert list(read_bundle(tmp_path / "none.json")) == [Line(1, fault="unreadable-file")]


def test_json_that_is_not_fhir_is_no_part_of_an_export(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="holds no NDJSON"):
        take(tmp_path, {"transactionTime": "2020"})
    assert [file.name for file in take(tmp_path, ndjson([patient(1)]), "a.ndjson").by_file] == ["a.ndjson"]


def plain(line: bytes) -> bool:
    return b"\n" not in line and bool(line.strip()) and not encoding_fault(line) and line == without_mark(line)


@given(st.lists(st.binary(min_size=1, max_size=40).filter(plain)))
def test_zstd_lines_come_back_in_order(tmp_path_factory: pytest.TempPathFactory, lines: list[bytes]) -> None:
    path = tmp_path_factory.getbasetemp() / "some.ndjson.zst"
    path.write_bytes(pa.compress(b"\n".join(lines), codec="zstd", asbytes=True))
    assert [line.content for line in read_lines(path)] == lines


def test_a_zstd_stream_that_was_cut_gives_its_whole_lines_and_one_for_the_rest(tmp_path: Path) -> None:
    lines = [f"{number * 7919 % 10007}-{number}".encode() for number in range(200_000)]
    packed = pa.compress(b"\n".join(lines) + b"\n", codec="zstd", asbytes=True)
    path = tmp_path / "f.ndjson.zst"
    path.write_bytes(packed[: int(len(packed) * 0.8)])
    *whole, last = read_lines(path)
    assert last.fault == "zstd-truncated"
    assert [line.content for line in whole] == lines[: len(whole)]
    assert len(whole) > 50_000
    path.write_bytes(b"this is no zstd")
    assert [line.fault for line in read_lines(path)] == ["zstd-corrupt"]


def test_a_truncated_zstd_file_is_named_in_the_account(tmp_path: Path) -> None:
    content = ndjson(observation(f"o{number}") for number in range(3000))
    report = take(tmp_path, pa.compress(content, codec="zstd", asbytes=True)[:-40], "a.ndjson.zst")
    assert report.reasons == {"zstd-truncated": 1}
    assert report.by_file[0].state == "zstd-truncated"
    assert take(tmp_path, pa.compress(content, codec="zstd", asbytes=True), "a.ndjson.zst").patients == 0


def test_a_byte_order_mark_before_a_bundle_is_skipped_and_utf_16_is_named(tmp_path: Path) -> None:
    content = json.dumps(bundle([{"resource": patient(3)}]))
    report = take(tmp_path, content.encode("utf-8-sig"))
    assert (report.accepted, report.quarantined) == (1, 0)
    for encoding in ("utf-16", "utf-16-be"):
        report = take(tmp_path, content.encode(encoding))
        assert (report.lines, report.reasons, report.by_file[0].state) == (1, {"utf-16": 1}, "utf-16")
    report = take(tmp_path, json.dumps({"transactionTime": "2020"}).encode("utf-16"), "manifest.json")
    assert [(entry.name, entry.reason) for entry in report.ignored] == [("manifest.json", "not-fhir")]


def test_a_second_member_of_one_name_costs_its_entry_alone_or_the_bundle_that_has_it(tmp_path: Path) -> None:
    entries = [{"resource": patient(number)} for number in (1, 2, 3)]
    content = json.dumps(bundle(entries)).encode()
    of_entry = content.replace(b'"id": "p2"', b'"id": "p2", "gender": "female"')
    assert take(tmp_path, of_entry, "entry.json").reasons == {"duplicate-key": 1}
    of_bundle = content.replace(b'"type": "collection"', b'"type": "history", "type": "collection"')
    (tmp_path / "in" / "entry.json").unlink()
    report = take(tmp_path, of_bundle, "bundle.json")
    assert (report.lines, report.reasons) == (1, {"duplicate-key": 1})
    assert take(tmp_path, content, "bundle.json").accepted == 1  # the control: the one that was set aside above
