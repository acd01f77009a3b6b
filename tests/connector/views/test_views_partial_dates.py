"""Dates of a year or a month alone: outcome, death and a record's day as early, an input as late as they may be."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from kit.fhir_resources import KEY, condition, observation, patient, prescription, quantity, write
from kit.places import ROOT
from kit.viewed_store import viewed
from safetensors.numpy import load_file

from connector.fhir import Store, ingest
from connector.views import CohortManifest, CohortSpecification, build_cohort
from connector.views.profile_views import derived_views
from vht_federate.components.contract import Component, Profile, read_component

SHIPPED = read_component(ROOT / "vht_federate" / "components" / "cardio_risk")
INPUTS = ("age", "male", "systolic_bp", "diabetes", "antihypertensive")
STROKE, DIABETES = "230690007", "44054006"


def component(**profile: Any) -> Component:
    chosen = {"title": "t", "inputs": INPUTS, "outcome": "cvd_10y", "index": "onset"} | profile
    return SHIPPED.model_copy(update={"profiles": {"p": Profile.model_validate(chosen)}})


ONSET = component()
LANDMARK = component(index="landmark", landmarks=("2010-01-01", "2012-06-01"), horizon_years=5)


def measured(ident: str, day: str | None, value: float, number: int = 1, **more: Any) -> dict[str, Any]:
    return observation(ident, number, effectiveDateTime=day, valueQuantity=quantity(value, "mm[Hg]"), **more)


def cohort(
    tmp_path: Path, items: list[Any], for_component: Component = ONSET
) -> tuple[CohortManifest, list[tuple[dict[str, float], float]]]:
    """The manifest, and of each record the values that are there and the outcome."""
    ingest(write(tmp_path / "in", "a.ndjson", items), tmp_path / "store", node_key=KEY, dataset="d", replace=True)
    return built(tmp_path, for_component)


def built(
    tmp_path: Path, for_component: Component = ONSET
) -> tuple[CohortManifest, list[tuple[dict[str, float], float]]]:
    folder = tmp_path / "visits" / "v" / "cohort"
    specification = CohortSpecification.of_every_column(for_component, "p")
    manifest = build_cohort(tmp_path / "store", specification, folder)
    by_views = build_cohort(
        tmp_path / "store",
        specification,
        folder,
        reader=lambda connection, generation: viewed(connection, generation, derived_views(for_component, "p")),
    )
    assert by_views == manifest
    tensors = load_file(folder / "cohort.safetensors")
    records = []
    for values, outcome in zip(tensors["values"], tensors["outcome"], strict=True):
        known = {n: float(v) for n, v in zip(INPUTS, values, strict=True) if not np.isnan(v)}
        records.append((known, float(outcome)))
    return manifest, records


def test_what_may_have_come_after_the_onset_is_no_input(tmp_path: Path) -> None:
    """Case ``onset-year-only`` of the field: an onset in 2015 may be one in January."""
    manifest, records = cohort(tmp_path, [
        patient(1), measured("a", "2014-06-01", 120), measured("b", "2015-11-01", 190),
        condition("c", STROKE, "2015"), condition("d", DIABETES, "2015-02-01"), prescription("e", "C09AA05", "2014-02"),
    ])  # fmt: skip
    [(values, outcome)] = records
    assert outcome == 1.0
    assert values == {"age": 64.0, "male": 1.0, "systolic_bp": 120.0, "diabetes": 0.0, "antihypertensive": 1.0}
    assert manifest.partial_dates == {"antihypertensive": 1, "cvd_10y": 1}


def test_nobody_is_observed_before_an_onset_that_may_have_come_first(tmp_path: Path) -> None:
    _, records = cohort(tmp_path, [patient(1), measured("b", "2015-11-01", 190), condition("c", STROKE, "2015")])
    assert records == []
    _, records = cohort(tmp_path, [patient(1), measured("b", "2015", 190), condition("c", STROKE, "2015-11-02")])
    assert records == []


@pytest.mark.parametrize(
    ("dated", "counts"),
    [("2009", True), ("2009-12", True), ("2010", False), ("2010-01", False), ("2010-01-01", False)],
)
def test_an_input_counts_where_its_last_possible_moment_lies_before_the_day(
    tmp_path: Path, dated: str, counts: bool
) -> None:
    for_component = component(index="landmark", landmarks=("2010-01-01",), horizon_years=5)
    items = [
        patient(1), measured("a", "2005-01-01", 111), measured("b", dated, 150),
        condition("c", DIABETES, dated), prescription("d", "C09AA05", dated),
    ]  # fmt: skip
    _, [(values, _)] = cohort(tmp_path, items, for_component)
    assert values["systolic_bp"] == (150.0 if counts else 111.0)
    assert (values["diabetes"], values["antihypertensive"]) == (float(counts), float(counts))


def test_a_condition_known_by_a_partial_recorded_date_is_as_late_as_that(tmp_path: Path) -> None:
    for_component = component(index="landmark", landmarks=("2010-06-01",), horizon_years=5)
    items = [patient(1), condition("c", DIABETES, "", onsetDateTime=None, recordedDate="2010")]
    _, [(values, _)] = cohort(tmp_path, items, for_component)
    assert values["diabetes"] == 0.0


def test_a_partial_period_counts_by_its_start(tmp_path: Path) -> None:
    for_component = component(index="landmark", landmarks=("2010-06-01",), horizon_years=5)
    within, before = {"start": "2010", "end": "2010-03"}, {"start": "2010-05", "end": "2010-05"}
    items = [
        patient(1),
        measured("a", None, 130, effectivePeriod=before),
        measured("b", None, 150, effectivePeriod=within),
    ]
    _, [(values, _)] = cohort(tmp_path, items, for_component)
    assert values["systolic_bp"] == 130.0


def test_an_outcome_that_may_have_come_before_a_landmark_ends_the_records_there(tmp_path: Path) -> None:
    manifest, records = cohort(tmp_path, [patient(1), condition("a", STROKE, "2012")], LANDMARK)
    assert [outcome for _, outcome in records] == [1.0], (
        "perhaps in January: within the first horizon, before the second"
    )
    assert manifest.partial_dates == {"cvd_10y": 1}
    _, records = cohort(tmp_path, [patient(1), condition("a", STROKE, "2015")], LANDMARK)
    assert [outcome for _, outcome in records] == [0.0, 1.0], "perhaps when the first horizon had just ended"


def test_a_death_of_a_year_alone_ends_the_records_with_the_year_before(tmp_path: Path) -> None:
    manifest, records = cohort(tmp_path, [patient(1, deceasedDateTime="2012")], LANDMARK)
    assert len(records) == 1
    assert manifest.partial_dates == {}
    _, [(values, outcome)] = cohort(tmp_path, [
        patient(1, deceasedDateTime="2012"), measured("a", "2010-01-01", 120), measured("b", "2012-08-01", 190),
    ])  # fmt: skip
    assert (values["systolic_bp"], values["age"], outcome) == (120.0, 61.0, 0.0)


def test_a_controls_day_is_the_first_that_the_last_record_may_mean(tmp_path: Path) -> None:
    items = [patient(1), measured("a", "2013-01-01", 120), measured("b", "2014-05-01", 150), measured("c", "2014", 190)]
    _, [(values, _)] = cohort(tmp_path, items)
    assert values["systolic_bp"] == 120.0, "the last exact date is of 2014-05-01, so that is the day"
    visit = {"resourceType": "Encounter", "id": "e", "status": "finished", "class": {"code": "AMB"},
             "subject": {"reference": "Patient/p1"}, "period": {"start": "2016", "end": "2016"}}  # fmt: skip
    _, [(values, _)] = cohort(tmp_path, [*items, visit])
    assert (values["systolic_bp"], values["age"]) == (190.0, 65.0), "2016-01-01: what is of 2014 came before"


def test_the_manifest_counts_partial_dates_of_every_column(tmp_path: Path) -> None:
    manifest, _ = cohort(tmp_path, [
        patient(1, birthDate="1950"), patient(2, birthDate="1950-04"), patient(3),
        patient(4, active=False, birthDate="1950"),
        measured("a", "2005", 120), measured("b", "2006-03", 120), measured("c", "2007-03-04", 120),
        condition("d", DIABETES, "2004", 2), prescription("e", "C09AA05", "2003", 3),
        measured("f", "2005", 120, 4),
    ], LANDMARK)  # fmt: skip
    assert manifest.partial_dates == {"age": 2, "antihypertensive": 1, "diabetes": 1, "systolic_bp": 2}
    text = (tmp_path / "visits" / "v" / "cohort" / "manifest.json").read_text()
    assert json.loads(text)["partial_dates"] == manifest.partial_dates


def test_a_store_from_before_both_bounds_opens_as_before_also_beside_new_parts(tmp_path: Path) -> None:
    items = [patient(1), measured("a", "2009", 120), condition("c", DIABETES, "2009"), measured("d", "2016-01-01", 1)]
    cohort(tmp_path, items)
    generation = Store(tmp_path / "store").current()
    assert generation is not None
    for table, moment in (("observation", "effective"), ("condition", "onset")):
        [part] = generation.parts(table)
        old = pq.read_table(part)
        first, last = (old[name].to_pylist() for name in (moment, f"{moment}_until"))
        kept = [b.replace(microsecond=0) if b else a for a, b in zip(first, last, strict=True)]
        pq.write_table(old.set_column(old.column_names.index(moment), moment, [kept]), part)
    for table in ("patient", "observation", "condition", "medication_request", "encounter"):
        for part in generation.parts(table):
            old = pq.read_table(part)
            pq.write_table(old.drop_columns([n for n in old.column_names if n.endswith(("_until", "_partial"))]), part)
    manifest, [(values, _)] = built(tmp_path, component(index="landmark", landmarks=("2010-01-01",), horizon_years=5))
    assert (values["systolic_bp"], values["diabetes"]) == (120.0, 1.0)
    assert manifest.partial_dates == {}
    more = [patient(2), measured("n", "2009", 150, 2)]
    ingest(write(tmp_path / "more", "a.ndjson", more), tmp_path / "store", node_key=KEY, dataset="d")
    manifest, records = built(tmp_path, component(index="landmark", landmarks=("2010-01-01",), horizon_years=5))
    assert sorted(values["systolic_bp"] for values, _ in records) == [120.0, 150.0]
    assert manifest.partial_dates == {"systolic_bp": 1}
