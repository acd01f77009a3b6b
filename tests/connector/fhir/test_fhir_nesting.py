"""One resource that is nested too deep is set aside by itself, wherever it comes from; its neighbours go in."""

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.bulk_data_server import BulkServer
from kit.fhir_resources import KEY, observation, patient, write

from connector.fhir import Store, ingest
from connector.fhir.intake import installed_ports
from connector.fhir.json_depth import parsed, parsed_in_parts, written
from connector.fhir.observation_values import Units
from connector.fhir.quarantine_explanation import explain
from connector.fhir.sources import SourceSettings, download, pulling
from connector.views.sql.compilation import compile_view
from connector.views.sql.ndjson_sources import execute

WELL, DEEP = (2, 51, 200), (254, 260, 300, 500, 899, 900, 1000, 1020, 1022, 1023, 1024, 1030, 1100, 5000)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)


def deep(levels: int, ident: str = "o2") -> bytes:
    """An observation with so many arrays and objects inside each other, and brackets that are none in its texts."""
    plain = json.dumps(observation(ident, note=[{"text": '[{"' * 2000}])).encode()
    extension, nested = b'{"url": "urn:x", "extension": [', levels // 2 - 1
    inmost = b'{"url": "urn:x", "valueCoding": {"code": "a"}}' if levels % 2 else b'{"url": "urn:x", "valueCode": "a"}'
    return plain[:-1] + b', "extension": [' + extension * nested + inmost + b"]}" * nested + b"]}"


def bundle(lines: list[bytes]) -> bytes:
    entries = b",".join(b'{"resource": ' + line + b"}" for line in lines)
    return b'{"resourceType": "Bundle", "type": "collection", "entry": [' + entries + b"]}"


def test_each_line_that_is_nested_too_deep_is_set_aside_and_all_others_go_in(tmp_path: Path) -> None:
    lines = [json.dumps(patient(1)).encode()]
    for levels in (*WELL, *DEEP):
        lines += [deep(levels, f"x{levels}"), json.dumps(observation(f"o{levels}")).encode()]
    folder, store = write(tmp_path / "in", "a.ndjson", lines), tmp_path / "store"
    report = ingest(folder, store, node_key=KEY, dataset="d")
    assert report.reasons == {"nested-too-deep": len(DEEP)}
    assert (report.lines, report.accepted) == (len(lines), len(lines) - len(DEEP))
    generation = Store(store).current()
    assert generation is not None
    entries = generation.quarantine()
    assert [entry["line"] for entry in entries] == [2 + 2 * (len(WELL) + place) for place in range(len(DEEP))]
    assert {explanation.source for explanation in explain(entries, [folder], Units(installed_ports()))} == {"found"}
    again = ingest(folder, store, node_key=KEY, dataset="d")
    assert (again.duplicate, again.changed) == (report.accepted, False)


def test_each_entry_of_a_bundle_that_is_nested_too_deep_is_set_aside_and_all_others_go_in(tmp_path: Path) -> None:
    folder, store = write(tmp_path / "in", "a.ndjson", [patient(1)]), tmp_path / "store"
    for levels in (*WELL, *DEEP):
        around = [json.dumps(observation(f"{side}{levels}")).encode() for side in "ab"]
        (folder / f"{levels}.json").write_bytes(bundle([around[0], deep(levels, f"x{levels}"), around[1]]))
    report = ingest(folder, store, node_key=KEY, dataset="d")
    assert report.reasons == {"nested-too-deep": len(DEEP)}
    assert report.lines == 1 + 3 * (len(WELL) + len(DEEP)) == report.accepted + len(DEEP)
    generation = Store(store).current()
    assert generation is not None
    listed = {(entry["file"], entry["line"]) for entry in generation.quarantine()}
    assert listed == {(f"{levels}.json", 2) for levels in DEEP}


@pytest.mark.parametrize("levels", [300, 1020, 1100])
def test_a_page_of_a_search_with_such_a_resource_is_read_whole(tmp_path: Path, levels: int) -> None:
    resources = {"Observation": [observation(f"o{number}") for number in range(5)], "Patient": [patient(1)]}
    server = BulkServer(
        resources, literal={"Observation": bundle([*map(orjson.dumps, resources["Observation"]), deep(levels, "d")])}
    )
    settings = {"name": "ehr", "types": ("Patient", "Observation"), "mode": "search"}
    with server.running(), pulling(tmp_path / "home"):
        pulled = download(SourceSettings.model_validate(settings | {"base_url": server.base}), tmp_path / "home")
    report = ingest(pulled.folder, tmp_path / "store", node_key=KEY, dataset="d")
    assert (report.lines, report.accepted, report.reasons) == (7, 6, {"nested-too-deep": 1})


@pytest.mark.parametrize("element", ["x", "note"])
@pytest.mark.parametrize("levels", [120, 200, 1000, 1100])
def test_a_view_over_a_file_accounts_for_such_a_line(tmp_path: Path, levels: int, element: str) -> None:
    view = {"resource": "Observation", "select": [{"column": [{"name": "id", "path": "id"}]}]}
    write(tmp_path, "Observation.ndjson", [observation("o1"), deep(levels).replace(b'"x"', f'"{element}"'.encode())])
    rows: list[Any] = []

    def sink(batches: Any) -> int:
        rows[:] = [row["id"] for batch in batches for row in batch.to_pylist()]
        return len(rows)

    account = execute(compile_view(view), [tmp_path / "Observation.ndjson"], sink, skip_bad_lines=True)
    assert (account.lines, account.resources + len(account.faults), account.rows) == (2, 2, len(rows))
    assert rows[0] == "o1"


@given(JSON)
def test_what_is_written_at_any_depth_reads_as_it_was(value: Any) -> None:
    inside = value
    for _ in range(300):
        inside = [inside]
    with pytest.raises(TypeError):
        orjson.dumps(inside)
    assert parsed(written(inside)) == inside
    assert parsed(written(value)) == value


@given(JSON, JSON)
def test_what_is_cut_off_leaves_its_neighbours_as_they_were(before: Any, after: Any) -> None:
    content = b"[%s, %s, %s]" % (orjson.dumps(before), b'{"a": [' * 1000 + b"]}" * 1000, orjson.dumps(after))
    first, _, last = parsed_in_parts(content)
    assert (first, last) == (before, after)
