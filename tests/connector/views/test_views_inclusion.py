"""Inclusion criteria: a component's view says whom a profile is about, and reaches nothing else."""

import json
import shutil
from contextvars import copy_context
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.fhir_resources import KEY, condition, observation, patient, write
from kit.viewed_store import viewed
from pydantic import ValidationError
from safetensors.numpy import load_file
from typer.testing import CliRunner

from connector.fhir import ingest, subject_key
from connector.views import CohortManifest, CohortSpecification, build_cohort
from connector.views.inclusion import compile_inclusion, make_included
from connector.views.profile_views import component_views, derived_views, view_hash
from vht_federate.cli import app
from vht_federate.components.contract import Component, Profile
from vht_federate.components.digest import ComponentFiles
from vht_federate.components.registry import find_component
from vht_federate.errors import VhtError, ViewError

SHIPPED = find_component("cardio-risk")
PROFILE = "cardiometabolic"


def view(**change: Any) -> dict[str, Any]:
    """Patients with a diagnosis of type 2 diabetes."""
    return {
        "resourceType": "ViewDefinition",
        "name": "diabetics",
        "status": "active",
        "resource": "Condition",
        "where": [{"path": "code.coding.where(system = 'http://snomed.info/sct' and code = '44054006').exists()"}],
        "select": [{"column": [{"name": "patient", "path": "subject.getReferenceKey(Patient)", "type": "string"}]}],
    } | change


def component(cohort: str | None = "diabetics.json", **change: Any) -> Component:
    chosen = SHIPPED.component.profile(PROFILE).model_dump() | {"cohort": cohort} | change
    return SHIPPED.component.model_copy(update={"profiles": {PROFILE: Profile.model_validate(chosen)}})


def build(store: Path, **more: Any) -> tuple[CohortManifest, dict[str, np.ndarray]]:
    tested_component, folder = more.pop("for_component", component()), store.parent / "visits" / "v1" / "cohort"
    call = {name: more.pop(name) for name in ("included", "reader") if name in more}
    specification = CohortSpecification(
        tested_component, PROFILE, **{"columns": tested_component.columns(PROFILE)} | more
    )
    manifest = build_cohort(store, specification, folder, **call)
    return manifest, load_file(folder / "cohort.safetensors")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten patients, 0 to 4 with diabetes, of 5 it was refuted; 1 has two codings for it, 9 a panel of forty parts."""
    root = tmp_path_factory.mktemp("inclusion")
    refuted = {"coding": [{"code": "refuted"}]}
    items: list[Any] = [patient(n, gender="male" if n % 2 else "female") for n in range(10)]
    items += [observation(f"o{n}", n) for n in range(10)]
    items += [condition(f"c{n}", "44054006", "2005-05-01", n) for n in range(5)]
    items += [condition("c5", "44054006", "2005-05-01", 5, verificationStatus=refuted)]
    items[-5]["code"]["coding"].append({"system": "http://example.org", "code": "x"})
    part = {"code": {"coding": [{"system": "http://example.org", "code": "y"}]}, "valueBoolean": True}
    items.append(observation("panel", 9, component=[part] * 40))
    ingest(write(root / "in", "a.ndjson", items), root / "store", node_key=KEY, dataset="d")
    return root / "store"


def included(tensors: dict[str, np.ndarray], numbers: set[int]) -> bool:
    """Whether the cohort is of exactly these patients: their number, and their sexes in the order of their keys."""
    order = sorted(numbers, key=lambda number: subject_key(KEY, f"p{number}"))
    first = np.unique(tensors["patient"], return_index=True)[1]
    return tensors["values"][first, 1].tolist() == [float(number % 2) for number in order]


def test_only_patients_whom_the_view_names_have_a_record(store: Path) -> None:
    manifest, tensors = build(store, cohort_view=view())
    assert (manifest.patients, manifest.records) == (6, 18)
    assert included(tensors, {0, 1, 2, 3, 4, 5})
    real = {"path": "verificationStatus.coding.where(code = 'refuted').exists().not()"}
    manifest, tensors = build(store, cohort_view=view(where=[*view()["where"], real]))
    assert included(tensors, {0, 1, 2, 3, 4})


def test_a_view_of_patients_names_them_by_their_own_key(store: Path) -> None:
    women = view(
        resource="Patient",
        where=[{"path": "gender = 'female'"}],
        select=[{"column": [{"name": "patient", "path": "getResourceKey()"}, {"name": "born", "path": "birthDate"}]}],
    )
    _, tensors = build(store, cohort_view=women)
    assert included(tensors, {0, 2, 4, 6, 8})


def test_the_manifest_counts_the_view_among_those_in_use(store: Path) -> None:
    manifest, _ = build(store, cohort_view=view())
    without, _ = build(store, for_component=component(cohort=None))
    used = [*derived_views(component(), PROFILE).values(), view()]
    assert manifest.views[-1] == "cohort"
    assert manifest.view_hash == view_hash(used) != without.view_hash
    other_view = view(name="others")
    assert build(store, cohort_view=other_view)[0].view_hash != manifest.view_hash


def test_the_view_is_run_over_the_rest_of_a_cohort_read_by_views(store: Path) -> None:
    views = derived_views(component(), PROFILE)
    direct, _ = build(store, cohort_view=view())
    assert direct == build(store, cohort_view=view(), reader=lambda c, g: viewed(c, g, views))[0]


def test_who_opted_out_is_not_asked_about(store: Path) -> None:
    strict = view(where=[{"path": "code.coding.code + '' = '44054006'"}])  # fails on patient 1, who has two codings
    with pytest.raises(ViewError) as caught:
        build(store, cohort_view=strict)
    assert caught.value.code == "VHT-VIEW-NOT-SINGLE"
    _, tensors = build(store, cohort_view=strict, excluded_subjects={subject_key(KEY, "p1")})
    assert included(tensors, {0, 2, 3, 4, 5})


def test_nobody_named_is_an_empty_cohort(store: Path) -> None:
    nobody = view(where=[{"path": "code.coding.where(code = 'none').exists()"}])
    assert build(store, cohort_view=nobody)[0].records == 0


@pytest.mark.parametrize("for_component", [component(cohort=None), component()], ids=["a view too many", "no view"])
def test_a_cohort_without_the_criteria_of_its_profile_is_refused(store: Path, for_component: Component) -> None:
    more = {"cohort_view": view()} if for_component.profile(PROFILE).cohort is None else {}
    with pytest.raises(ViewError) as caught:
        build(store, for_component=for_component, **more)
    assert caught.value.code == "VHT-VIEW-COHORT"


# --- views that are none ----------------------------------------------------------------------------------------------


def column(path: str, name: str = "patient", **more: Any) -> dict[str, Any]:
    return {"column": [{"name": name, "path": path, **more}]}


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"select": [column("subject.getReferenceKey(Patient)", "person")]}, "VHT-VIEW-PATIENT"),
        ({"select": [column("getResourceKey()")]}, "VHT-VIEW-PATIENT"),  # a condition's key is no patient's
        ({"select": [column("code.text")]}, "VHT-VIEW-PATIENT"),
        ({"select": [column("encounter.getReferenceKey(Encounter)")]}, "VHT-VIEW-PATIENT"),
        ({"select": [column("subject.getReferenceKey(Patient)", collection=True)]}, "VHT-VIEW-PATIENT"),
        (
            {"select": [{"unionAll": [column("subject.getReferenceKey(Patient)"), column("getResourceKey()")]}]},
            "VHT-VIEW-PATIENT",
        ),
        ({"select": []}, "VHT-VIEW-SHAPE"),
        ({"resource": "Specimen", "where": []}, "VHT-VIEW-RESOURCE"),
        ({"where": [{"path": "code.coding.where("}]}, "VHT-VIEW-SYNTAX"),
        ({"where": [{"path": "nowhere.exists()"}]}, None),
        ({"where": [{"path": "true)) UNION SELECT * FROM read_text('/etc/passwd') --"}]}, None),
        ({"where": [{"path": "read_text('/etc/passwd').exists()"}]}, None),
        ({"where": [{"path": "getenv('HOME') = 'x'"}]}, None),
        ({"resource": "Condition; ATTACH '/tmp/x.db'"}, None),
        (
            {"select": [column("subject.getReferenceKey(Patient)"), column("code", 'x", read_text("/etc/passwd")')]},
            None,
        ),
        ({"constant": [{"name": "x'); INSTALL httpfs; --", "valueString": "x"}]}, None),
    ],
)
def test_a_view_that_does_not_compile_or_reaches_outside_is_refused(
    store: Path, wrong: dict[str, Any], code: str | None
) -> None:
    with pytest.raises(ViewError) as caught:
        build(store, cohort_view=view(**wrong))
    assert caught.value.code == (code or caught.value.code)
    assert "root:" not in str(caught.value)
    with pytest.raises(ViewError):
        compile_inclusion(view(**wrong))


def test_text_that_looks_like_a_statement_stays_text(store: Path, tmp_path: Path) -> None:
    sly = "'); COPY (SELECT 1) TO '" + str(tmp_path / "out.csv") + "'; --"
    text = sly.replace("'", "\\'")
    harmless = view(where=[{"path": f"code.text = '{text}'"}])
    assert build(store, cohort_view=harmless)[0].records == 0
    assert not (tmp_path / "out.csv").exists()


def test_a_view_that_multiplies_without_end_is_stopped(store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hasty = partial(make_included, time_limit_s=0.3)
    monkeypatch.setattr("connector.views.eligible_patients.make_included", hasty)
    selects = [
        {"forEach": "component", "column": [{"name": f"c{n}", "path": "value.ofType(boolean)"}]} for n in range(9)
    ]
    with pytest.raises(VhtError) as caught:
        build(store, cohort_view=view(resource="Observation", where=[], select=[*view()["select"], *selects]))
    assert caught.value.code in ("VHT-VIEW-TIME", "VHT-INPUT-MEMORY")


# --- in the component's folder ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copied_folder = tmp_path / "copy"
    shutil.copytree(SHIPPED.folder, copied_folder, ignore=shutil.ignore_patterns("__pycache__"))
    contract = (copied_folder / "component.toml").read_text()
    head = f"[profiles.{PROFILE}]\n"
    assert head in contract
    (copied_folder / "component.toml").write_text(contract.replace(head, f'{head}cohort = "diabetics.json"\n'))
    (copied_folder / "diabetics.json").write_text(json.dumps(view()))
    return copied_folder


def test_the_view_lies_in_the_folder_and_the_digest_covers_it(folder: Path) -> None:
    files = ComponentFiles.read(folder)
    assert files.cohort_view(PROFILE) == view()
    assert files.cohort_view("angiography") is None
    assert component_views(files, PROFILE)["cohort"] == view()
    (folder / "diabetics.json").write_text(json.dumps(view(name="others")))
    assert ComponentFiles.read(folder).digest != files.digest


@pytest.mark.parametrize("content", [None, "", "{", "[]", "[" * 100_000, json.dumps({"x": "y" * 300_000})])
def test_a_file_that_is_no_view_is_refused(folder: Path, content: str | None) -> None:
    if content is None:
        (folder / "diabetics.json").unlink()
    else:
        (folder / "diabetics.json").write_text(content)
    with pytest.raises(ViewError) as caught:
        ComponentFiles.read(folder).cohort_view(PROFILE)
    assert caught.value.code == "VHT-VIEW-COHORT"


@pytest.mark.parametrize("name", ["../../secret.json", "/etc/passwd", "a/b.json", "a.txt", "", "a.json\n"])
def test_the_file_lies_in_the_folder_itself(name: str) -> None:
    with pytest.raises(ValidationError):
        component(cohort=name)


def vht(*arguments: str) -> Any:
    result = copy_context().run(CliRunner().invoke, app, ["--json", *arguments])
    return json.loads(result.stdout)


def test_show_refuses_a_component_whose_cohort_view_does_not_compile(folder: Path) -> None:
    assert vht("component", "show", str(folder))["ok"]
    (folder / "diabetics.json").write_text(json.dumps(view(select=[column("code.text")])))
    answer = vht("component", "show", str(folder))
    assert (answer["ok"], answer["error"]["code"]) == (False, "VHT-VIEW-PATIENT")


def test_views_prints_what_the_manifest_vouches_for(folder: Path, store: Path) -> None:
    output = vht("component", "views", str(folder), PROFILE)["data"]
    manifest, _ = build(store, cohort_view=view())
    assert output["view_hash"] == manifest.view_hash
    assert list(output["views"]) == list(manifest.views)
    plain = copy_context().run(CliRunner().invoke, app, ["component", "views", str(folder), PROFILE])
    assert json.loads(plain.stdout[: plain.stdout.rindex("]") + 1]) == list(output["views"].values())
    assert vht("component", "views", "cardio-risk", "none")["error"]["code"] == "VHT-INPUT-PROFILE"
