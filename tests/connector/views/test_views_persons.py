"""One human is one patient of a cohort: their records are joined, and nobody contributes to a tensor file twice."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.fhir_resources import KEY, condition, observation, patient, quantity, write
from kit.places import ROOT
from kit.viewed_store import viewed
from safetensors.numpy import load_file

from connector.fhir import Store, ingest, subject_key
from connector.quality import survey
from connector.views import CohortManifest, CohortSpecification, build_cohort
from connector.views.profile_views import derived_views
from vht_federate.components.contract import Component, Profile, read_component
from vht_federate.domain.split import bucket_of

SHIPPED = read_component(ROOT / "vht_federate" / "components" / "cardio_risk")
PROFILE = "cardiometabolic"
PLACE = {name: index for index, name in enumerate(SHIPPED.profile(PROFILE).inputs)}


def changed(**change: Any) -> Component:
    chosen = SHIPPED.profile(PROFILE).model_dump() | change
    if chosen["index"] == "onset":
        del chosen["landmarks"], chosen["horizon_years"]
    return SHIPPED.model_copy(update={"profiles": {PROFILE: Profile.model_validate(chosen)}})


def replaces(number: int, *others: int, **more: Any) -> dict[str, Any]:
    said = [{"type": "replaces", "other": {"reference": f"Patient/p{other}"}} for other in others]
    return patient(number, link=said, **more)


def measured(ident: str, day: str, value: float, number: int) -> dict[str, Any]:
    return observation(ident, number, effectiveDateTime=day, valueQuantity=quantity(value, "mm[Hg]"))


def take(tmp_path: Path, items: list[Any]) -> Path:
    ingest(write(tmp_path / "in", "a.ndjson", items), tmp_path / "store", node_key=KEY, dataset="d")
    return tmp_path / "store"


def build(store: Path, component: Component = SHIPPED, **more: Any) -> tuple[CohortManifest, dict[str, np.ndarray]]:
    folder = store.parent / "visits" / "v1" / "cohort"
    call = {name: more.pop(name) for name in ("included", "reader") if name in more}
    specification = CohortSpecification.of_every_column(component, PROFILE, **more)
    manifest = build_cohort(store, specification, folder, **call)
    return manifest, load_file(folder / "cohort.safetensors")


# Two records of one human, of which one replaces the other, and somebody else.
TWICE = [
    replaces(1, 2),
    patient(2),
    patient(3),
    *(measured(f"o{number}", "2009-01-01", 100 + number, number) for number in (1, 2, 3)),
]


def test_one_human_has_one_group_of_records_in_the_tensors(tmp_path: Path) -> None:
    store = take(tmp_path, TWICE)
    named: list[Any] = []
    manifest, tensors = build(store, included=lambda *included: named.append(included))
    assert (manifest.patients, manifest.records) == (2, 6)
    assert np.bincount(tensors["patient"]).tolist() == [3, 3], "each patient has one record for each landmark"
    assert len(tensors["bucket"]) == 2
    [(subjects, buckets, accounts)] = named
    assert set(subjects) == {subject_key(KEY, "p1"), subject_key(KEY, "p3")}
    assert dict(zip(subjects, buckets, strict=True))[subject_key(KEY, "p1")] == max(bucket_of("p1"), bucket_of("p2"))
    assert set(accounts) == {subject_key(KEY, "p1")}


def test_without_what_intake_makes_of_the_links_the_same_human_contributes_twice(tmp_path: Path) -> None:
    """The control of the test above: the attack works where the wall is taken away."""
    store = take(tmp_path, TWICE)
    generation = Store(store).current()
    assert generation is not None
    [wall] = generation.parts("person")
    wall.unlink()
    manifest, tensors = build(store)
    assert manifest.patients == 3
    assert np.bincount(tensors["patient"]).tolist() == [3, 3, 3]


def test_a_persons_records_are_read_as_one(tmp_path: Path) -> None:
    store = take(tmp_path, [
        replaces(1, 2), patient(2, birthDate=None, gender="female"),
        measured("a", "2009-06-01", 120, 1), measured("b", "2010-06-01", 150, 2),
        condition("c", "44054006", "2005-01-01", 2), condition("d", "22298006", "2011-06-01", 2),
    ])  # fmt: skip
    manifest, tensors = build(store)
    assert (manifest.patients, manifest.records) == (1, 2), "the outcome under the old id ends the records"
    assert tensors["values"][:, PLACE["systolic_bp"]].tolist() == [120.0, 150.0]
    assert tensors["values"][:, PLACE["diabetes"]].tolist() == [1.0, 1.0]
    assert tensors["values"][:, PLACE["male"]].tolist() == [1.0, 1.0]
    assert tensors["outcome"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize("out", ["p1", "p2", "p0"])
def test_an_opt_out_under_any_id_leaves_the_person_out(tmp_path: Path, out: str) -> None:
    old = patient(2, link=[{"type": "replaced-by", "other": {"reference": "Patient/p1"}}])
    survivor = replaces(1, 0)  # p0 is known by name alone
    store = take(tmp_path, [survivor, old, patient(3), *TWICE[3:]])
    manifest, _ = build(store, excluded_subjects={subject_key(KEY, out)})
    assert manifest.patients == 1


@pytest.mark.parametrize(
    "layout",
    [{}, {"layout": "sequence", "steps": 3, "window_days": 365}, {"index": "onset", "landmarks": ()}],
    ids=["tabular", "sequence", "onset"],
)
def test_views_and_tables_give_the_same_bytes_of_persons(tmp_path: Path, layout: dict[str, Any]) -> None:
    items: list[Any] = []
    for number in range(0, 30, 3):
        items += [
            replaces(number, number + 1, gender="female" if number % 2 else "male"),
            patient(number + 1, birthDate="1960", deceasedDateTime="2018-03" if number == 6 else None),
            patient(number + 2),
            *(measured(f"o{number}-{n}", f"20{5 + n:02d}-03", 100 + n, number + n % 3) for n in range(9)),
            condition(f"c{number}", "22298006", f"20{11 + number % 5}", number + 1),
        ]
    store, component = take(tmp_path, items), changed(**layout)
    direct, _ = build(store, component)
    views = derived_views(component, PROFILE)
    through, _ = build(store, component, reader=lambda connection, generation: viewed(connection, generation, views))
    assert direct == through
    assert direct.patients == 20 or layout.get("index")
    assert direct.partial_dates["systolic_bp"] == 90


def test_inclusion_criteria_look_at_the_whole_person(tmp_path: Path) -> None:
    men = {
        "resource": "Condition",
        "select": [{"column": [{"name": "patient", "path": "subject.getReferenceKey(Patient)"}]}],
        "where": [{"path": "code.coding.where(code = '44054006').exists()"}],
    }
    component = changed(cohort="diabetics.json")
    store = take(tmp_path, [*TWICE, condition("c", "44054006", "2005-01-01", 2)])
    manifest, _ = build(store, component, cohort_view=men)
    assert (manifest.patients, manifest.records) == (1, 3)


def test_a_survey_counts_persons(tmp_path: Path) -> None:
    store = take(tmp_path, [*TWICE, patient(4), *(measured(f"x{n}", "2009-02-02", 1, 1) for n in range(3))])
    result = survey(store, SHIPPED, PROFILE, excluded_subjects={subject_key(KEY, "p4")})
    assert (result.store_patients, result.course.patients) == (3, 2)
    assert {loss.reason: loss.patients for loss in result.losses} == {"opted-out": 1}
    [pressure] = [feature for feature in result.features if feature.name == "systolic_bp"]
    assert (pressure.patients, pressure.values, [unit.patients for unit in pressure.units]) == (2, 6, [2])
    held = {holding.type: (holding.patients, holding.most) for holding in result.holdings}
    assert held["Observation"] == (2, 5)
    out = survey(store, SHIPPED, PROFILE, excluded_subjects={subject_key(KEY, "p2")})
    assert out.course.patients == 2
