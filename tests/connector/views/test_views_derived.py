"""Views derived from ports: what a profile reads, said as ViewDefinitions that give what the node's reader gives."""

import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kit.fhir_resources import KEY, condition, observation, patient, prescription, write
from kit.places import SHARED
from kit.viewed_store import viewed

from connector.duckdb_lockdown import locked
from connector.fhir import Store, ingest
from connector.views import CohortManifest, CohortSpecification, build_cohort, run
from connector.views.port_codings import read_port_codings
from connector.views.profile_views import derived_views, view_hash
from connector.views.sql import compile_view
from vht_federate.components.contract import Component, Port, Profile, Source
from vht_federate.components.registry import find_component, installed
from vht_federate.samples.generator import generate

SHIPPED = find_component("cardio-risk").component
PROFILE = "cardiometabolic"
GSD = SHARED / "data" / "gsd_r4_ndjson.tgz"
LAYOUTS: dict[str, dict[str, Any]] = {
    "tabular": {},
    "repeated": {"layout": "repeated", "steps": 4},
    "sequence": {"layout": "sequence", "steps": 5, "window_days": 180},
    "onset": {"index": "onset", "landmarks": (), "horizon_years": 0},
}


def component(**change: Any) -> Component:
    chosen = SHIPPED.profile(PROFILE).model_dump() | change
    if chosen["index"] == "onset":
        del chosen["landmarks"], chosen["horizon_years"]
    return SHIPPED.model_copy(update={"profiles": {PROFILE: Profile.model_validate(chosen)}})


def both_ways(store: Path, for_component: Component, profile: str, **more: Any) -> CohortManifest:
    """The cohort by the store's tables and by the views alone are the same bytes. Its manifest."""
    folder = store.parent / "visits" / "v1" / "cohort"
    specification = CohortSpecification(for_component, profile, **{"columns": for_component.columns(profile)} | more)
    direct = build_cohort(store, specification, folder)
    generation = Store(store).current()
    assert generation is not None
    sources = [for_component.port(name).source for name in specification.columns]
    with locked([generation.folder.resolve()]) as connection:
        codings = read_port_codings(connection, generation, sources, specification.maps)
    views = derived_views(for_component, profile, specification.columns, codings)

    tables_read: list[str] = []

    def through(connection: Any, generation: Any) -> Any:
        relations = viewed(connection, generation, views)
        return lambda table: (tables_read.append(table), relations(table))[1]

    assert build_cohort(store, specification, folder, reader=through) == direct
    assert direct.records > 20
    assert direct.view_hash == view_hash(list(views.values()))
    assert direct.views == tuple(views)
    assert set(tables_read) <= set(views)
    assert {"patient", "observation", "condition"} <= set(tables_read)
    return direct


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("generated")
    generate(root / "in", hospitals=4, patients=40, seed=9)
    for name in ("hospital-2", "hospital-3"):  # other units, other spellings
        ingest(root / "in" / name, root / "store", node_key=KEY, dataset=name)
    return root / "store"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_views_and_tables_give_the_same_bytes_on_generated_data(generated: Path, layout: str) -> None:
    both_ways(generated, component(**LAYOUTS[layout]), PROFILE)


def test_views_and_tables_give_the_same_bytes_where_columns_are_not_permitted(generated: Path) -> None:
    both_ways(generated, component(), PROFILE, columns=("male", "systolic_bp", "smoker", "cvd_10y"))


@pytest.fixture(scope="module")
def synthea(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not GSD.is_file():
        if os.environ.get("CI") == "true":
            pytest.fail(f"the sample export is missing: {GSD}")
        pytest.skip("the sample export (../shared/data/gsd_r4_ndjson.tgz) is not on this machine")
    root = tmp_path_factory.mktemp("gsd")
    folder, chosen = root / "in", set()
    folder.mkdir()
    with tarfile.open(GSD) as archive:
        lines = {
            Path(member.name).stem.split(".")[0]: file.read().splitlines()
            for member in archive.getmembers()
            if member.isfile() and (file := archive.extractfile(member)) is not None
        }
    for name in ("Patient", "Observation", "Condition", "MedicationRequest", "Encounter"):
        kept_lines = []
        for line in lines[name]:
            resource = json.loads(line)
            owner = resource["id"] if name == "Patient" else resource["subject"]["reference"].rpartition(":")[2]
            if name == "Patient" and len(chosen) < 120:
                chosen.add(owner)
            if owner in chosen:
                kept_lines.append(line)
        (folder / f"{name}.ndjson").write_bytes(b"\n".join(kept_lines) + b"\n")
    ingest(folder, root / "store", node_key=KEY, dataset="gsd")
    return root / "store"


@pytest.mark.parametrize("name", ["tabular", "onset"])
def test_views_and_tables_give_the_same_bytes_on_a_synthea_export(synthea: Path, name: str) -> None:
    tested_component = find_component("hypertension-risk").component
    [profile] = tested_component.profiles
    assert tested_component.profile(profile).index == "onset"
    if name == "tabular":
        chosen = tested_component.profile(profile).model_dump() | {
            "index": "landmark", "landmarks": ("2010-01-01", "2016-01-01"), "horizon_years": 5,
        }  # fmt: skip
        tested_component = tested_component.model_copy(update={"profiles": {profile: Profile.model_validate(chosen)}})
    both_ways(synthea, tested_component, profile)


# --- the views themselves ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(installed()))
def test_every_shipped_profile_has_views_that_compile_and_keep_their_digest(name: str) -> None:
    shipped_component = find_component(name).component
    for profile in shipped_component.profiles:
        views = derived_views(shipped_component, profile)
        assert views == derived_views(shipped_component, profile)
        again = json.loads(json.dumps(list(views.values())))
        assert view_hash(again) == view_hash(list(views.values()))
        for view in views.values():
            assert compile_view(view).resource == view["resource"]


def test_a_column_that_is_not_permitted_is_in_no_view() -> None:
    views = derived_views(SHIPPED, PROFILE, ("male", "systolic_bp", "cvd_10y"))
    views_text = json.dumps(views)
    assert list(views) == ["patient", "observation", "condition"]
    assert "8480-6" in views_text
    assert "22298006" in views_text
    for kept_out in ("birthDate", "2093-3", "44054006", "C09AA05"):
        assert kept_out not in views_text
    assert view_hash(list(views.values())) != view_hash(list(derived_views(SHIPPED, PROFILE).values()))


def test_a_view_keeps_the_rows_of_its_ports_and_no_others() -> None:
    views = derived_views(SHIPPED, PROFILE)
    panel = observation("b")
    del panel["valueQuantity"]
    panel["code"] = {"coding": [{"system": "http://loinc.org", "code": "85354-9"}]}
    panel["component"] = [
        {
            "code": {"coding": [{"system": "http://loinc.org", "code": code}]},
            "valueQuantity": {"value": value, "unit": "mmHg", "code": "mm[Hg]"},
        }
        for code, value in (("8462-4", 80), ("8480-6", 120))
    ]
    other = observation("c", code={"coding": [{"system": "http://example.org", "code": "8480-6"}]})
    rows = run(views["observation"], [observation("a"), panel, other])
    assert [(row["resource"], row["part"], row["code"], row["number"]) for row in rows] == [
        ("a", 0, "8480-6", 140.0),
        ("b", 2, "8480-6", 120.0),
    ]
    assert run(views["patient"], [patient(1)])[0]["birth_date"] == "1950-03-04"


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), min_size=1, max_size=8)))
@settings(max_examples=12, deadline=None)
def test_no_code_gets_out_of_its_string(codes: list[str]) -> None:
    codes = ["it's", "\\", "' or true or code = '", *codes]
    port = Port(
        name="a", title="a", kind="quantity", unit="1", bounds=(0, 1), source=Source(type="observation", codes=codes)
    )
    tested_component = SHIPPED.model_copy(
        update={
            "ports": (port, SHIPPED.port("cvd_10y")),
            "profiles": {"p": Profile(title="t", inputs=("a",), outcome="cvd_10y", index="onset")},
        }
    )
    view = derived_views(tested_component, "p")["observation"]
    items = [
        observation(str(at), code={"coding": [{"system": "http://loinc.org", "code": code}]})
        for at, code in enumerate([*codes, "none of them"])
    ]
    pairs = sorted({(row["resource"], row["code"]) for row in run(view, items)})
    assert pairs == sorted((str(at), code) for at, code in enumerate(codes))


def test_more_codes_than_a_path_holds_are_several_branches() -> None:
    codes = tuple(f"{number}-0" for number in range(750))
    port = SHIPPED.port("systolic_bp")
    many = port.model_copy(update={"source": port.source.model_copy(update={"codes": codes})})
    tested_component = SHIPPED.model_copy(
        update={"ports": tuple(many if candidate is port else candidate for candidate in SHIPPED.ports)}
    )
    view = derived_views(tested_component, PROFILE)["observation"]
    items = [
        observation(str(at), code={"coding": [{"system": "http://loinc.org", "code": codes[at]}]})
        for at in (0, 99, 749)
    ]
    assert [row["resource"] for row in run(view, items)] == ["0", "99", "749"]


def test_a_store_read_by_views_needs_every_patient_once(tmp_path: Path) -> None:
    people = [patient(n) for n in range(30)]
    items = [*people, *(observation(f"o{n}", n, effectiveDateTime=f"2009-01-{n % 28 + 1:02}") for n in range(30))]
    ingest(write(tmp_path / "in", "a.ndjson", items), tmp_path / "store", node_key=KEY, dataset="d")
    both_ways(tmp_path / "store", component(), PROFILE)


def test_views_and_tables_give_the_same_bytes_where_maps_read_other_systems(tmp_path: Path) -> None:
    gm, rxnorm = "http://fhir.de/CodeSystem/bfarm/icd-10-gm", "http://www.nlm.nih.gov/research/umls/rxnorm"
    items: list[dict[str, Any]] = []
    for n in range(30):
        items += [patient(n), observation(f"o{n}", n, effectiveDateTime=f"2009-01-{n % 28 + 1:02}")]
        ill = condition(f"c{n}", "-", ("2001", "2015")[n % 2], n)
        code = {"system": gm, "code": ("E11.90", "I21.4", "J45.9")[n % 3]}
        items.append(ill | {"code": {"coding": [code]}})
        takes = prescription(f"m{n}", "-", "2005", n)
        items.append(takes | {"medicationCodeableConcept": {"coding": [{"system": rxnorm, "code": "316049"}]}})
    ingest(write(tmp_path / "in", "a.ndjson", items), tmp_path / "store", node_key=KEY, dataset="d")
    manifest = both_ways(tmp_path / "store", component(), PROFILE)
    assert set(manifest.mapped_codes) == {"antihypertensive", "cvd_10y", "diabetes"}
