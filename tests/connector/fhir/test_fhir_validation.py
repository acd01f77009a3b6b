"""FHIR's own models beside the intake: they look at a sample and explain what was set aside, and decide nothing."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kit.broken_resources import BROKEN, VALUES
from kit.commands import vht_node
from kit.fhir_resources import KEY, condition, observation, patient, prescription, quantity, write
from kit.hospital import Hospital
from kit.places import ROOT

from connector.fhir import Store, ingest, validation
from connector.fhir.intake import installed_ports
from connector.fhir.observation_values import Units
from connector.fhir.quarantine_explanation import explain
from connector.fhir.quarantine_reasons import REASONS
from connector.fhir.validation import FINDINGS, Finding, Sample, findings

DOCS = ROOT / "docs" / "reference" / "fhir.md"


def faults_of(resource: dict[str, Any]) -> list[tuple[str, str]]:
    content = json.dumps(resource).encode()
    return [(finding.path, finding.kind) for finding in findings(resource["resourceType"], content)]


@pytest.mark.parametrize(
    ("resource", "expected"),
    [
        (patient(1), []),
        (observation("o1"), []),
        (condition("c1", "38341003", "2009"), []),
        (prescription("m1", "C09AA05", "2009"), []),
        (observation("o1", Zebedee=1), [("Observation", "unknown-element")]),
        (observation("o1", valueQuantity={"value": 1, "Zebedee": 2}),
         [("Observation.valueQuantity", "unknown-element")]),
        (observation("o1", code={"coding": {"code": "x"}}), [("Observation.code.coding", "type")]),
        (observation("o1", code="x"), [("Observation.code", "type")]),
        (observation("o1", component=[{"valueString": "x"}]), [("Observation.component.code", "missing")]),
        (observation("o1", status=None), [("Observation.status", "missing")]),
        (observation("o1", effectiveDateTime="2009-W03"), [("Observation.effectiveDateTime", "format")]),
        (observation("o1", valueBoolean=True), [("Observation", "rule")]),
        (observation("o1", contained=[{"resourceType": "Zebedee"}]), [("Observation", "unreadable")]),
        (patient(1, id="Zebedee Zebedee"), [("Patient.id", "format")]),
    ],
)  # fmt: skip
def test_a_fault_is_named_by_element_and_kind(resource: dict[str, Any], expected: list[tuple[str, str]]) -> None:
    assert faults_of(resource) == expected


KEYS = st.sampled_from(["code", "coding", "value", "valueQuantity", "extension", "contained", "CANARY", "subject"])
ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.just("CANARY"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS | st.just("CANARYkey"), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(KEYS | st.sampled_from(["id", "status", "note", "component"]), ANY, max_size=4))
def test_no_finding_repeats_what_the_data_says(more: dict[str, Any]) -> None:
    reported = findings("Observation", json.dumps(observation("o1") | more).encode())
    assert all(finding.kind in FINDINGS for finding in reported)
    assert "CANARY" not in repr(reported)


def test_the_sample_is_the_first_and_some_by_chance_and_the_same_every_time() -> None:
    keys = [f"{number * 2654435761 % 2**32:08x}" for number in range(500)]

    def chosen(order: list[str]) -> tuple[set[bytes], set[bytes]]:
        sample = Sample(5)
        for key in order:
            sample.offer("Observation", key, key.encode())
        return set(sample._first["Observation"]), {content for _, content in sample._least["Observation"]}

    first, least = chosen(keys)
    assert first == {key.encode() for key in keys[:5]}
    assert least == {key.encode() for key in sorted(keys)[:5]}
    assert chosen(keys[:5] + keys[::-1])[1] == least, "whatever the order"
    assert chosen(keys + keys)[1] == least, "a repetition is no second chance"


# R4 lets an extension stand beside the value of an extension; the models do not know it.
UNKNOWN_TO_MODELS = [{"url": "urn:x", "_valueCode": {"extension": [{"url": "urn:y", "valueCode": "unknown"}]}}]


def test_findings_are_counted_and_change_no_verdict(tmp_path: Path) -> None:
    items = [patient(n) for n in range(5)]
    items += [observation(f"o{n}", extension=UNKNOWN_TO_MODELS if n < 3 else None) for n in range(40)]
    folder = write(tmp_path / "in", "a.ndjson", [*items, observation("wrong", status="done")])
    report = ingest(folder, tmp_path / "store", node_key=KEY, dataset="d", sample_size=50)
    unasked = ingest(folder, tmp_path / "other", node_key=KEY, dataset="d", sample_size=0)
    assert report.sample is not None
    assert unasked.sample is None
    plain = report.to_dict()
    assert plain["sample"]["Observation"] == {
        "sampled": 40,
        "faulty": 3,
        "findings": [
            {
                "path": "Observation.extension",
                "kind": "unknown-element",
                "says": FINDINGS["unknown-element"],
                "resources": 3,
            }
        ],
    }
    assert plain["sample"]["Patient"] == {"sampled": 5, "faulty": 0, "findings": []}
    assert {**plain, "sample": None} == unasked.to_dict()
    assert (report.accepted, report.quarantined) == (45, 1)


def test_the_models_are_asked_about_a_few_lines_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = []
    real = validation.findings
    monkeypatch.setattr(validation, "findings", lambda kind, content: kinds.append(kind) or real(kind, content))
    folder = write(tmp_path / "in", "a.ndjson", [observation(f"o{n}") for n in range(3000)])
    report = ingest(folder, tmp_path / "store", node_key=KEY, dataset="d", sample_size=7)
    assert report.accepted == 3000
    assert 7 <= len(kinds) <= 14


def test_without_the_models_nothing_is_validated_and_all_else_is_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "available", lambda: False)
    folder = write(tmp_path / "in", "a.ndjson", [observation("o1"), observation("o2", status="done")])
    report = ingest(folder, tmp_path / "store", node_key=KEY, dataset="d")
    assert (report.accepted, report.quarantined, report.sample) == (1, 1, None)


@pytest.mark.parametrize("module", ["connector.listeners.serve", "connector.cli.node"])
def test_the_models_are_loaded_when_they_are_asked_and_not_before(module: str) -> None:
    code = f"import {module}, sys; print('fhir.resources' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


def entries(store: Path) -> list[dict[str, Any]]:
    generation = Store(store).current()
    assert generation is not None
    return generation.quarantine()


def test_every_line_that_was_set_aside_is_found_again_and_explained(tmp_path: Path) -> None:
    items = [item for item, _, _ in BROKEN] + [observation(f"v{n}", **more) for n, (more, _) in enumerate(VALUES)]
    folder, store = write(tmp_path / "in", "a.ndjson.gz", items), tmp_path / "store"
    ingest(folder, store, node_key=KEY, dataset="d")
    explanations = list(explain(entries(store), [tmp_path / "none", folder], Units(installed_ports())))
    assert len(explanations) == len(entries(store))
    assert {explanation.source for explanation in explanations} == {"found"}
    by_line = {explanation.line: explanation for explanation in explanations}
    assert by_line[1].at_character == len(BROKEN[0][0])
    kinds = {(explanation.reason, explanation.path): explanation.r4b for explanation in explanations}
    assert kinds["missing", "Observation.status"] == (Finding("Observation.status", "missing"),)
    assert kinds["type", "Observation.code.coding"] is not None
    assert kinds["unknown-unit", "Observation.valueQuantity"] == ()
    assert kinds["unsupported-type", "resourceType"] is not None
    for explanation in explanations:
        plain = explanation.to_dict()
        assert plain["what"]
        assert plain["do"]


def test_a_source_that_is_gone_or_changed_is_said_to_be(tmp_path: Path) -> None:
    folder, store = tmp_path / "in", tmp_path / "store"
    write(folder, "a.ndjson", [observation("o1", status="done"), b"{"])
    write(folder, "b.ndjson", [observation("o2", valueQuantity=quantity(1, "furlong"))])
    ingest(folder, store, node_key=KEY, dataset="d")
    (folder / "b.ndjson").unlink()
    write(folder, "a.ndjson", [observation("o1")])
    sources = [
        (explanation.file, explanation.line, explanation.source)
        for explanation in explain(entries(store), [folder], Units())
    ]
    assert sorted(sources) == [("a.ndjson", 1, "changed"), ("a.ndjson", 2, "gone"), ("b.ndjson", 1, "gone")]


def test_files_of_one_name_in_two_folders_are_each_explained_from_their_own(tmp_path: Path) -> None:
    store = tmp_path / "store"
    first = write(tmp_path / "first", "a.ndjson", [observation("o1", status="done"), observation("o2"), b"{"])
    second = write(tmp_path / "second", "a.ndjson", [observation("o3"), observation("o4", status="done")])
    for folder in (first, second):
        ingest(folder, store, node_key=KEY, dataset="d")
    for folders in ([first, second], [second, first]):
        explanations = list(explain(entries(store), folders, Units()))
        assert len(explanations) == 3
        assert {explanation.source for explanation in explanations} == {"found"}
    only_second = [explanation.source for explanation in explain(entries(store), [second], Units())]
    assert sorted(only_second) == ["changed", "found", "gone"]  # the control: without the first folder


def test_every_reason_is_in_the_reference_and_in_the_words_of_the_command() -> None:
    rows = [line.split("|")[1] for line in DOCS.read_text().splitlines() if line.startswith("| `")]
    listed = {word for row in rows for word in row.replace(",", " ").replace("`", " ").split()}
    assert set(REASONS) - listed == set()
    raised = {reason for _, reason, _ in BROKEN} | {reason for _, reason in VALUES if reason}
    assert raised <= set(REASONS)


def test_what_asks_for_more_than_fhir_does_says_so_in_the_reference_and_in_the_answer(tmp_path: Path) -> None:
    section = DOCS.read_text().partition("### Valid FHIR, of no use here")[2].partition("###")[0]
    lists = section.partition("Lines:")[2]
    assert set(re.findall("`([a-z0-9-]+)`", lists)) == {code for code, reason in REASONS.items() if reason.beyond_r4}
    items = [observation("o1", subject={"reference": "Group/1"}), observation("o2", status="done")]
    folder = write(tmp_path / "in", "a.ndjson", items)
    ingest(folder, tmp_path / "store", node_key=KEY, dataset="d")
    said = [explanation.to_dict() for explanation in explain(entries(tmp_path / "store"), [folder], Units())]
    assert [(one["reason"], one["beyond_r4"], one["source"]) for one in said] == [
        ("not-a-patient", True, "found"),
        ("code", False, "found"),
    ]
    assert [one["what"].startswith("valid FHIR, of no use here: ") for one in said] == [True, False]


def test_the_command_explains_from_where_the_export_was_taken_in(hospital: Hospital) -> None:
    canary = "Zebedee"
    folder = write(hospital.root / "in", "a.ndjson", [patient(1), observation("o1", status=canary), b"{" + b'"Zebedee'])
    report = vht_node("ingest", hospital.state, folder)
    assert report["sample"]["Patient"] == {"sampled": 1, "faulty": 0, "findings": []}
    explanations = vht_node("quarantine", hospital.state, "--explain")["entries"]
    assert [(entry["line"], entry["reason"], entry["source"]) for entry in explanations] == [
        (2, "code", "found"),
        (3, "malformed-json", "found"),
    ]
    assert explanations[0]["type"] == "Observation"
    assert canary not in json.dumps(explanations)
    moved = folder.rename(hospital.root / "moved")
    assert {entry["source"] for entry in vht_node("quarantine", hospital.state, "--explain")["entries"]} == {"gone"}
    again = vht_node("quarantine", hospital.state, "--explain", "--from", moved)["entries"]
    assert {entry["source"] for entry in again} == {"found"}
