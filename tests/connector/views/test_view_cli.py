"""``vht view``: files in, rows out, every line accounted for."""

import csv
import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from kit.commands import exit_and_envelope

from connector.fhir.source_folder import Ignored, look_into
from connector.views.sql.compilation import compile_view
from connector.views.sql.execution import prove
from connector.views.sql.ndjson_sources import execute, find_files
from connector.views.sql.shipped import names, shipped
from vht_federate.errors import InputError, ViewError

VIEW = {
    "resource": "Patient",
    "select": [
        {"column": [{"name": "id", "path": "id"}, {"name": "active", "path": "active"}]},
        {"forEachOrNull": "name", "column": [{"name": "family", "path": "family"},
                                             {"name": "given", "path": "given", "collection": True}]},
    ],
}  # fmt: skip
GOOD = [
    {"resourceType": "Patient", "id": "p1", "active": True, "name": [{"family": "A", "given": ["x", "y"]}]},
    {"resourceType": "Patient", "id": "p2", "name": [{"family": 'B "b", c'}, {"family": "D"}]},
    {"resourceType": "Patient", "id": "p3"},
]
ROWS = [
    {"id": "p1", "active": True, "family": "A", "given": ["x", "y"]},
    {"id": "p2", "active": None, "family": 'B "b", c', "given": []},
    {"id": "p2", "active": None, "family": "D", "given": []},
    {"id": "p3", "active": None, "family": None, "given": None},  # there is no name
]
BAD = {
    "not-json": [b'{"resourceType": "Patient", "id": "p4"', b"\xff\xfe", b"\xef\xbb\xbf{}", b"{} {}"],
    "not-a-resource": [b"null", b"[]", b"5", b'"text"', b"{}", b'{"resourceType": null}'],
    "does-not-fit": [
        b'{"resourceType": "Patient", "id": "p5", "active": "perhaps"}',
        b'{"resourceType": "Patient", "id": "p6", "name": "Secret"}',
        b'{"resourceType": "Patient", "id": "p7", "name": [5]}',
        b'{"resourceType": "Patient", "id": "p8", "id": "p9"}',
    ],
}


def lines(*resources: Any) -> bytes:
    return b"".join(
        resource + b"\n" if isinstance(resource, bytes) else json.dumps(resource).encode() + b"\n"
        for resource in resources
    )


@pytest.fixture
def view_file(tmp_path: Path) -> Path:
    path = tmp_path / "view.json"
    path.write_text(json.dumps(VIEW))
    return path


def collect(path: Path, **options: Any) -> tuple[list[dict[str, Any]], Any]:
    plan = compile_view(VIEW)
    rows: list[dict[str, Any]] = []

    def sink(batches: Any) -> int:
        rows[:] = [row for batch in batches for row in batch.to_pylist()]
        return len(rows)

    return rows, execute(plan, find_files(path, plan.resource).files, sink, **options)


def test_run_writes_csv_parquet_and_ndjson(tmp_path: Path, view_file: Path) -> None:
    (tmp_path / "Patient.ndjson").write_bytes(lines(*GOOD))
    for name in ("rows.csv", "rows.parquet", "rows.ndjson"):
        code, envelope = exit_and_envelope(
            "view", "run", view_file, "--data", tmp_path / "Patient.ndjson", "--out", tmp_path / name
        )
        assert (code, envelope["data"]["rows"], envelope["data"]["lines"]) == (0, 4, 3)
    assert pq.read_table(tmp_path / "rows.parquet").to_pylist() == ROWS
    assert [json.loads(line) for line in (tmp_path / "rows.ndjson").read_text().splitlines()] == ROWS
    with (tmp_path / "rows.csv").open(newline="") as file:
        assert list(csv.reader(file)) == [
            ["id", "active", "family", "given"],
            ["p1", "true", "A", '["x","y"]'],
            ["p2", "", 'B "b", c', "[]"],
            ["p2", "", "D", "[]"],
            ["p3", "", "", ""],
        ]


def test_check_and_explain_say_what_would_run(tmp_path: Path, view_file: Path) -> None:
    code, envelope = exit_and_envelope("view", "check", view_file)
    assert code == 0
    assert [column["name"] for column in envelope["data"]["columns"]] == ["id", "active", "family", "given"]
    (tmp_path / "Patient.ndjson").write_bytes(lines(*GOOD))
    code, envelope = exit_and_envelope("view", "explain", view_file, "--data", tmp_path)
    assert code == 0
    assert str(tmp_path / "Patient.ndjson") in envelope["data"]["sql"]


def test_a_bad_line_stops_a_run_and_is_named_by_number(tmp_path: Path, view_file: Path) -> None:
    (tmp_path / "Patient.ndjson").write_bytes(lines(GOOD[0], *BAD["does-not-fit"][:2], GOOD[1]))
    code, envelope = exit_and_envelope("view", "run", view_file, "--data", tmp_path, "--out", tmp_path / "rows.csv")
    assert code == 2
    assert envelope["error"]["code"] == "VHT-INPUT-FHIR-LINE"
    assert "2 of 4 lines" in envelope["error"]["message"]
    assert "Patient.ndjson:2 does-not-fit, Patient.ndjson:3" in envelope["error"]["message"]
    assert "Secret" not in json.dumps(envelope)
    assert not (tmp_path / "rows.csv").exists()


def test_skipped_lines_are_counted_and_none_becomes_a_row(tmp_path: Path) -> None:
    bad = [line for group in BAD.values() for line in group]
    mixed = [GOOD[0], *bad[:7], b"", GOOD[1], b"   ", {"resourceType": "Observation", "id": "o"}, *bad[7:], GOOD[2]]
    (tmp_path / "mixed.ndjson").write_bytes(lines(*mixed))
    rows, account = collect(tmp_path, skip_bad_lines=True)
    assert rows == ROWS
    assert account.lines == account.resources + account.other + len(account.faults) == 3 + 1 + len(bad)
    assert (account.resources, account.other, account.rows) == (3, 1, 4)
    counts: dict[str, int] = {}
    for fault in account.faults:
        counts[fault.reason] = counts.get(fault.reason, 0) + 1
    assert counts == {reason: len(group) for reason, group in BAD.items()}


@pytest.mark.parametrize("bad", [line for group in BAD.values() for line in group])
def test_no_bad_line_passes_the_fast_way(bad: bytes, tmp_path: Path) -> None:
    (tmp_path / "Patient.ndjson").write_bytes(lines(GOOD[0], bad, GOOD[1]))
    with pytest.raises(InputError, match=r"1 of 3 lines do not fit: Patient\.ndjson:2 "):
        collect(tmp_path)


def test_a_last_line_cut_short_is_a_bad_line_and_a_cut_gzip_is_an_unreadable_file(tmp_path: Path) -> None:
    content = lines(*GOOD)
    (tmp_path / "Patient.ndjson").write_bytes(content[:-10])
    with pytest.raises(InputError, match=r"Patient\.ndjson:3 not-json"):
        collect(tmp_path)
    (tmp_path / "Patient.ndjson").unlink()
    packed = gzip.compress(content * 2000)
    (tmp_path / "Patient.ndjson.gz").write_bytes(packed)
    assert collect(tmp_path)[1].lines == 6000
    (tmp_path / "Patient.ndjson.gz").write_bytes(packed[: len(packed) // 2])
    with pytest.raises(InputError):
        collect(tmp_path, skip_bad_lines=True)


def test_a_view_fault_that_only_data_shows_is_the_views(tmp_path: Path) -> None:
    (tmp_path / "Patient.ndjson").write_bytes(lines(*GOOD))
    plan = compile_view({"resource": "Patient", "select": [{"column": [{"name": "f", "path": "name.family"}]}]})
    with pytest.raises(ViewError, match="more than one value") as caught:
        execute(plan, find_files(tmp_path, "Patient").files, lambda batches: sum(1 for _ in batches))
    assert caught.value.code == "VHT-VIEW-NOT-SINGLE"


def test_files_are_found_by_resource_type(tmp_path: Path) -> None:
    named = ["1.Patient.ndjson", "Patient.000.ndjson", "Patient.001.ndjson.gz", "all.jsonl"]
    for name in (*named, "Observation.ndjson", "x.txt"):
        (tmp_path / name).write_bytes(b"")
    found = find_files(tmp_path, "Patient")
    assert [path.name for path in found.files] == named
    assert found.ignored == (Ignored("Observation.ndjson", "other-type"), Ignored("x.txt", "other-ending"))
    assert [path.name for path in find_files(tmp_path, "Condition").files] == ["all.jsonl"]
    (tmp_path / "all.jsonl").unlink()
    assert len(find_files(tmp_path, "Condition").files) == 4  # each name speaks of another type: none can be left out
    with pytest.raises(InputError):
        find_files(tmp_path / "none", "Patient")
    odd = tmp_path / "all*.ndjson"
    odd.write_bytes(lines(*GOOD))
    with pytest.raises(InputError, match="holds one of"):
        collect(odd)


def test_a_folder_is_read_as_intake_reads_it_and_what_is_not_read_is_named(tmp_path: Path, view_file: Path) -> None:
    data = tmp_path / "in"
    data.mkdir()
    (data / "Patient.ndjson").write_bytes(lines(GOOD[0]))
    (data / "1.Patient.NDJSON.GZ").write_bytes(gzip.compress(b"\xef\xbb\xbf" + lines(GOOD[1])))
    (data / "rest.jsonl").write_bytes(lines(GOOD[2], {"resourceType": "Observation", "id": "o"}))
    bundle = {"resourceType": "Bundle", "type": "collection", "entry": [{"resource": GOOD[2] | {"id": "p4"}}]}
    (data / "bundle.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(bundle).encode())
    for name in ("._Patient.ndjson", "notes.txt", "Observation.ndjson"):
        (data / name).write_bytes(b"\x00\x05\x16\x07")
    code, envelope = exit_and_envelope("view", "run", view_file, "--data", data)
    assert code == 0
    assert sorted({row["id"] for row in envelope["data"]["head"]}) == ["p1", "p2", "p3", "p4"]
    assert [envelope["data"][name] for name in ("lines", "resources", "other", "rows")] == [5, 4, 1, 5]
    assert {entry["name"]: entry["reason"] for entry in envelope["data"]["ignored"]} == {
        "._Patient.ndjson": "system-file", "Observation.ndjson": "other-type", "notes.txt": "other-ending",
    }  # fmt: skip
    assert {path.name for path in look_into(data).files} - {"Observation.ndjson"} == {
        path.name for path in find_files(data, "Patient").files
    }


def test_a_bundle_that_does_not_fit_is_named_and_may_be_left_out(tmp_path: Path, view_file: Path) -> None:
    (tmp_path / "Patient.ndjson").write_bytes(lines(*GOOD))
    bundle = {"resourceType": "Bundle", "type": "collection", "entry": [{"request": {"method": "DELETE"}}]}
    (tmp_path / "b.json").write_text(json.dumps(bundle))
    code, envelope = exit_and_envelope("view", "run", view_file, "--data", tmp_path)
    assert (code, envelope["error"]["code"]) == (2, "VHT-INPUT-FHIR-LINE")
    assert "b.json:1 no-resource" in envelope["error"]["message"]
    rows, account = collect(tmp_path, skip_bad_lines=True)
    assert rows == ROWS
    assert (account.lines, account.resources, [fault.reason for fault in account.faults]) == (4, 3, ["no-resource"])


@pytest.mark.parametrize("careful", [False, True])
def test_a_byte_order_mark_is_skipped_whichever_way_a_file_is_read(tmp_path: Path, careful: bool) -> None:
    bad = BAD["does-not-fit"][:1] if careful else []
    (tmp_path / "Patient.ndjson").write_bytes(b"\xef\xbb\xbf" + lines(*GOOD, *bad))
    rows, account = collect(tmp_path, skip_bad_lines=True)
    assert rows == ROWS
    assert len(account.faults) == len(bad)


def test_check_calls_no_view_valid_that_does_not_run(tmp_path: Path, view_file: Path) -> None:
    view = {"resource": "Patient", "select": [{"column": [{"name": "n", "path": "9223372036854775807 + 1"}]}]}
    view_file.write_text(json.dumps(view))
    code, envelope = exit_and_envelope("view", "check", view_file)
    assert (code, envelope["error"]["code"]) == (2, "VHT-VIEW-RANGE")
    plan = compile_view(VIEW)
    prove(plan)
    with pytest.raises(ViewError) as caught:
        prove(replace(plan, _rest=f"{plan._rest} AND"))
    assert caught.value.code == "VHT-VIEW-QUERY"


def test_a_quote_in_a_files_name_is_only_a_quote(tmp_path: Path) -> None:
    path = tmp_path / "it's; --.ndjson"
    path.write_bytes(lines(*GOOD))
    assert collect(path)[0] == ROWS


def test_a_view_file_is_refused_before_it_is_parsed(tmp_path: Path) -> None:
    big = tmp_path / "big.json"
    big.write_bytes(b"[" * 10_000_000)
    assert exit_and_envelope("view", "check", big)[1]["error"]["code"] == "VHT-VIEW-LIMIT"
    big.write_bytes(b"{")
    assert exit_and_envelope("view", "check", big)[1]["error"]["code"] == "VHT-VIEW-SHAPE"
    assert exit_and_envelope("view", "check", tmp_path / "none.json")[1]["error"]["code"] == "VHT-VIEW-UNKNOWN"


@pytest.mark.parametrize("name", names())
def test_shipped_views_compile(name: str) -> None:
    assert compile_view(shipped(name)).columns


def test_rows_to_another_format_are_refused(tmp_path: Path, view_file: Path) -> None:
    (tmp_path / "Patient.ndjson").write_bytes(lines(*GOOD))
    code, envelope = exit_and_envelope("view", "run", view_file, "--data", tmp_path, "--out", tmp_path / "rows.xlsx")
    assert (code, envelope["error"]["code"]) == (2, "VHT-INPUT-FORMAT")
