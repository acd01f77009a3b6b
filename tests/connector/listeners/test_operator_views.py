"""What an operator looks at before and after: one visit in full, what was set aside, whether the node answers."""

import contextvars
import io
import json
from typing import Any

import pytest
from kit.hospital import COLUMNS, DATASET, Hospital, approved, ask, write_fhir
from rich.console import Console
from typer.testing import CliRunner

from connector.cli.output_tables import visit_tables
from vht_federate.cli import app
from vht_federate.errors import UnavailableError, error_from_envelope
from vht_federate.serving import await_ready


def vht(*arguments: object) -> dict[str, Any]:
    line = ["--json", "node", *map(str, arguments)]
    envelope = json.loads(contextvars.copy_context().run(CliRunner().invoke, app, line).stdout)
    if not envelope["ok"]:
        raise error_from_envelope(envelope["error"])
    return dict(envelope["data"])


def shown(visit: dict[str, Any]) -> str:
    out = io.StringIO()
    Console(file=out, width=400).print(*visit_tables(visit))
    return out.getvalue()


def test_an_operator_sees_all_that_the_decision_is_about(stocked: Hospital) -> None:
    with stocked.open() as node:
        visit = ask(node, stocked)
        before = shown(node.overview.visit(visit.id))
        for fact in (visit.permit_id, "requested", "would cost", "epsilon", "0 of ", *COLUMNS):
            assert fact in before, fact
        assert node.overview.visit(visit.id)["component"]["digest"] in before
        assert "What left" not in before
        assert approved(node, visit.id) == "ready"
        node.gate.begin(visit.id, "train", 1, "ab" * 32)
        node.gate.release(visit.id, "train", 1, "cd" * 32, 17)
        after = shown(node.overview.visit(visit.id))
    assert "cd" * 32 in after
    assert "What left" in after


def test_what_was_set_aside_is_listed_by_place_and_replaced_with_its_export(hospital: Hospital) -> None:
    folder = write_fhir(hospital.root / "fhir")
    (folder / "Broken.ndjson").write_text('{"resourceType": "Patient", "id": "Anna Muster"}\n{\n')
    vht("ingest", hospital.state, folder)
    entries = vht("quarantine", hospital.state)["entries"]
    assert [(entry["file"], entry["line"], entry["reason"]) for entry in entries] == [
        ("Broken.ndjson", 1, "format"),
        ("Broken.ndjson", 2, "malformed-json"),
    ]
    assert {entry["dataset"] for entry in entries} == {DATASET}
    assert "Anna" not in json.dumps(entries)
    (folder / "Broken.ndjson").unlink()
    assert vht("ingest", hospital.state, folder, "--replace")["duplicate"] == 0
    assert vht("quarantine", hospital.state)["entries"] == []
    assert [entry["body"]["replaces"] for entry in hospital.log() if entry["kind"] == "dataset.ingested"] == [
        False,
        True,
    ]


def test_waiting_for_a_node_that_does_not_come_ends(stocked: Hospital) -> None:
    assert vht("status", stocked.state)["running"] is False
    with pytest.raises(UnavailableError) as caught:
        vht("status", stocked.state, "--wait", "0.3")
    assert caught.value.code == "VHT-UNAVAILABLE-STARTING"


def test_waiting_asks_until_it_is_told_yes() -> None:
    answers = iter([False, False, True])
    await_ready(lambda: next(answers), wait_s=5, what="it")
    assert list(answers) == []
    await_ready(lambda: pytest.fail("asked though nobody waits"), wait_s=0, what="it")
