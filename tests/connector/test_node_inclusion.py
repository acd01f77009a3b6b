"""A visit of a component with inclusion criteria: they count at the node, and a view that is none ends the visit."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from node_kit import COMPONENT, PROFILE, Hospital, approved, ask, make_hospital, write_fhir

from vht_federate.components.digest import ComponentFiles
from vht_federate.domain.study import ComponentRef

NAMED = {"name": "patient", "path": "getResourceKey()"}


def install(folder: Path, **change: Any) -> ComponentRef:
    """The shipped component for women alone, in ``folder``."""
    made = folder / "cardio_women"
    shutil.copytree(COMPONENT.folder, made, ignore=shutil.ignore_patterns("__pycache__"))
    head, contract = f"[profiles.{PROFILE}]\n", (made / "component.toml").read_text()
    (made / "component.toml").write_text(contract.replace(head, f'{head}cohort = "women.json"\n'))
    view = {
        "resourceType": "ViewDefinition",
        "name": "women",
        "status": "active",
        "resource": "Patient",
        "where": [{"path": "gender = 'female'"}],
        "select": [{"column": [NAMED]}],
    }
    (made / "women.json").write_text(json.dumps(view | change))
    component = COMPONENT.component
    return ComponentRef(
        name=component.name, version=component.version, digest=ComponentFiles.read(made).digest, profile=PROFILE
    )


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Hospital]:
    (tmp_path / "installed").mkdir()
    (tmp_path / "installed" / "README.md").write_text("components of this hospital")
    install(tmp_path / "installed")
    made = make_hospital(tmp_path, component_paths=(tmp_path / "installed",))
    with made.open(start=False) as node:
        node.ingest(write_fhir(tmp_path / "fhir"))
    yield made
    made.issuer.stop()


def visit(site: Hospital, ref: ComponentRef) -> tuple[str, Any, dict[str, Any]]:
    with site.open() as node:
        asked = ask(node, site, site.permit(component_digests=(ref.digest,)), site.study(component=ref))
        state = approved(node, asked.id)
        manifest = site.state / "visits" / asked.id / "cohort" / "manifest.json"
        return state, node.visits.get(asked.id), json.loads(manifest.read_text()) if manifest.exists() else {}


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
