"""A visit of a component with inclusion criteria: they count at the node, and a view that is none ends the visit."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kit.hospital import COMPONENT, PROFILE, Hospital, approved, ask, make_hospital, write_fhir

from vht_federate.components.digest import ComponentFiles
from vht_federate.domain.study import ComponentRef
from vht_federate.errors import ViewError

NAMED = {"name": "patient", "path": "getResourceKey()"}


def install(folder: Path, **change: Any) -> ComponentRef:
    """The shipped component for women alone, in ``folder``."""
    installed = folder / "cardio_women"
    shutil.copytree(COMPONENT.folder, installed, ignore=shutil.ignore_patterns("__pycache__"))
    head, contract = f"[profiles.{PROFILE}]\n", (installed / "component.toml").read_text()
    (installed / "component.toml").write_text(contract.replace(head, f'{head}cohort = "women.json"\n'))
    view = {
        "resourceType": "ViewDefinition",
        "name": "women",
        "status": "active",
        "resource": "Patient",
        "where": [{"path": "gender = 'female'"}],
        "select": [{"column": [NAMED]}],
    }
    (installed / "women.json").write_text(json.dumps(view | change))
    component = COMPONENT.component
    return ComponentRef(
        name=component.name, version=component.version, digest=ComponentFiles.read(installed).digest, profile=PROFILE
    )


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Hospital]:
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "README.md").write_text("components of this hospital")
    install(tmp_path / "installed")
    hospital = make_hospital(tmp_path, component_paths=(tmp_path / "installed",))
    with hospital.open(start=False) as node:
        node.ingest(write_fhir(tmp_path / "fhir"))
    yield hospital
    hospital.issuer.stop()


def visit(site: Hospital, ref: ComponentRef) -> tuple[str, Any, dict[str, Any]]:
    with site.open() as node:
        requested = ask(node, site, site.permit(component_digests=(ref.digest,)), site.study(component=ref))
        state = approved(node, requested.id)
        manifest = site.state / "visits" / requested.id / "cohort" / "manifest.json"
        return state, node.visits.get(requested.id), json.loads(manifest.read_text()) if manifest.exists() else {}


def test_only_those_whom_the_components_view_names_are_in_the_cohort(site: Hospital) -> None:
    ref = ComponentRef(
        name="cardio-risk",
        version=COMPONENT.component.version,
        digest=ComponentFiles.read(site.root / "installed" / "cardio_women").digest,
        profile=PROFILE,
    )
    state, row, manifest = visit(site, ref)
    assert (state, row.code) == ("ready", None)
    assert manifest["patients"] == 20
    assert manifest["views"][-1] == "cohort"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"select": [{"column": [{"name": "patient", "path": "gender"}]}]}, "VHT-VIEW-PATIENT"),
        ({"where": [{"path": "read_text('/etc/passwd').exists()"}]}, "VHT-VIEW-"),
    ],
)
def test_a_view_that_is_none_ends_the_visit_before_anything_is_read(
    site: Hospital, change: dict[str, Any], code: str
) -> None:
    shutil.rmtree(site.root / "installed" / "cardio_women")
    state, row, manifest = visit(site, install(site.root / "installed", **change))
    assert state == "failed"
    assert row.code.startswith(code)
    assert manifest == {}
    assert "cohort.built" not in site.kinds()


ALONE = "value.ofType(Quantity).where(value > 149)"  # patient p39's, and nobody else's
STOPPED = [
    (f"({ALONE}.count() + 1) * 4611686018427387904 != {ALONE}.count()", None, "VHT-VIEW-RANGE"),
    (f"{ALONE}.exists() implies (code.coding.code + '') = 'x'", None, "VHT-VIEW-NOT-SINGLE"),
    ("true", ViewError("late", code="VHT-VIEW-TIME"), "VHT-VIEW-TIME"),
    ("true", RuntimeError("p39 is ill"), "VHT-INTERNAL"),
]


@pytest.mark.parametrize(("path", "failure", "code"), STOPPED)
def test_why_the_data_stop_a_view_is_told_to_operators_and_nobody_outside(
    site: Hospital,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    path: str,
    failure: Exception | None,
    code: str,
) -> None:
    shutil.rmtree(site.root / "installed" / "cardio_women")
    named = [{"column": [{"name": "patient", "path": "subject.getReferenceKey(Patient)"}]}]
    ref = install(site.root / "installed", resource="Observation", where=[{"path": path}], select=named)
    two_codings = {
        "resourceType": "Observation",
        "id": "two",
        "status": "final",
        "effectiveDateTime": "2009-03-02T10:00:00Z",
        "code": {"coding": [{"system": "http://loinc.org", "code": code} for code in ("8480-6", "8459-0")]},
        "subject": {"reference": "Patient/p39"},
        "valueQuantity": {"value": 150, "unit": "mmHg", "system": "http://unitsofmeasure.org", "code": "mm[Hg]"},
    }
    (site.root / "more").mkdir()
    (site.root / "more" / "o.ndjson").write_text(json.dumps(two_codings) + "\n")
    with site.open(start=False) as node:
        node.ingest(site.root / "more")
    if failure is not None:

        def fail(*_: Any, **__: Any) -> None:
            raise failure

        monkeypatch.setattr("connector.views.eligible_patients.make_included", fail)
    with caplog.at_level("WARNING"):
        state, row, manifest = visit(site, ref)
    assert (state, row.code, manifest) == ("failed", "VHT-COHORT-UNREADABLE", {})
    assert row.reason == "the cohort cannot be read from this node's data"
    [closed] = [entry["body"] for entry in site.log() if entry["kind"] == "visit.closed"]
    assert (closed["code"], closed["reason"]) == (row.code, row.reason)
    assert [record.facts["code"] for record in caplog.records if record.message == "the cohort cannot be read"] == [
        code
    ]
