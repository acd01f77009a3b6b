"""Profiles indexed by onset: a record is of what was known before the day that the patient's own course sets."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from kit.fhir_resources import KEY, condition, observation, patient, prescription, quantity, write
from kit.places import ROOT
from pydantic import ValidationError
from safetensors.numpy import load_file

from connector.fhir import ingest, subject_key
from connector.views import CohortSpecification, build_cohort
from synth.fhir import ONSET_DAY, resources_of
from vht_federate.components.contract import Component, Profile, read_component

STROKE, INFARCTION = "230690007", "22298006"
INPUTS = ("age", "male", "systolic_bp", "diabetes", "antihypertensive")


def component(**profile: Any) -> Component:
    shipped = read_component(ROOT / "vht_federate" / "components" / "cardio_risk")
    chosen = {"title": "t", "inputs": INPUTS, "outcome": "cvd_10y", "index": "onset"} | profile
    return shipped.model_copy(update={"profiles": {"onset": Profile.model_validate(chosen)}})


def measured(ident: str, day: str, value: float, number: int = 1, **more: Any) -> dict[str, Any]:
    return observation(ident, number, effectiveDateTime=day, valueQuantity=quantity(value, "mm[Hg]"), **more)


def records(
    tmp_path: Path, items: list[Any], excluded: tuple[int, ...] = ()
) -> dict[int, tuple[dict[str, float], float]]:
    """Number of the patient -> its one record: (values that are there by port, outcome)."""
    ingest(write(tmp_path / "in", "data.ndjson", items), tmp_path / "store", node_key=KEY, dataset="d")
    numbers = [int(item["id"].removeprefix("p")) for item in items if item["resourceType"] == "Patient"]
    people = {n: subject_key(KEY, f"p{n}") for n in numbers}
    never = {people[n] for n in excluded}
    records_by_number = {}
    for number, subject in people.items():
        values, outcomes = build(tmp_path, never | set(people.values()) - {subject})
        assert len(outcomes) <= 1
        if len(outcomes):
            known = dict(zip(INPUTS, values[0].tolist(), strict=True))
            records_by_number[number] = (
                {name: value for name, value in known.items() if not np.isnan(value)},
                float(outcomes[0]),
            )
    assert len(build(tmp_path, never)[1]) == len(records_by_number)
    return records_by_number


def build(tmp_path: Path, excluded: set[str]) -> tuple[np.ndarray, np.ndarray]:
    tested_component, folder = component(), tmp_path / "visits" / "v1" / "cohort"
    specification = CohortSpecification.of_every_column(tested_component, "onset", excluded_subjects=excluded)
    manifest = build_cohort(tmp_path / "store", specification, folder)
    assert (manifest.index, manifest.landmarks, manifest.horizon_years) == ("onset", (), 0)
    tensors = load_file(folder / "cohort.safetensors")
    return tensors["values"], tensors["outcome"]


def test_a_cases_inputs_are_recorded_strictly_before_the_day_of_onset(tmp_path: Path) -> None:
    items = [
        patient(1),
        measured("a", "2012-05-30", 130),
        measured("b", "2012-06-01T00:00:00Z", 190),  # on the day of onset, though before its hour
        measured("c", "2013-01-01", 200),
        condition("d", STROKE, "2012-06-01T10:00:00Z"),
        condition("e", "44054006", "2012-06-01"),
        prescription("f", "C09AA05", "2012-05-31T23:59:59Z"),
    ]
    [(values, outcome)] = records(tmp_path, items).values()
    assert outcome == 1.0
    assert values == {"age": 62.0, "male": 1.0, "systolic_bp": 130.0, "diabetes": 0.0, "antihypertensive": 1.0}


def test_of_several_onsets_the_first_counts(tmp_path: Path) -> None:
    items = [
        patient(1),
        measured("a", "2005-01-01", 120),
        measured("b", "2011-01-01", 170),
        condition("c", INFARCTION, "2012-01-01"),
        condition("d", STROKE, "2006-01-01"),
    ]
    [(values, outcome)] = records(tmp_path, items).values()
    assert (values["systolic_bp"], values["age"], outcome) == (120.0, 55.0, 1.0)


@pytest.mark.parametrize(
    "last",
    [
        measured("z", "2015-03-04", 200),
        measured("z", "2015-03-04", 200, status="cancelled"),
        condition("z", "195662009", "2015-03-04"),
        prescription("z", "A10BA02", "2015-03-04"),
        {
            "resourceType": "Encounter",
            "id": "z",
            "status": "finished",
            "class": {"code": "AMB"},
            "subject": {"reference": "Patient/p1"},
            "period": {"start": "2015-03-03T23:00:00Z", "end": "2015-03-04T01:00:00Z"},
        },
    ],
    ids=["observation", "cancelled", "condition", "prescription", "encounter"],
)
def test_a_controls_day_is_that_of_the_last_resource_of_any_kind(tmp_path: Path, last: dict[str, Any]) -> None:
    items = [patient(1), measured("a", "2009-01-01", 118), last]
    [(values, outcome)] = records(tmp_path, items).values()
    assert (values["systolic_bp"], values["age"], outcome) == (118.0, 65.0, 0.0)


def test_what_was_entered_in_error_does_not_move_a_controls_day(tmp_path: Path) -> None:
    items = [
        patient(1),
        measured("a", "2009-01-01", 118),
        measured("b", "2010-01-01", 200),
        measured("c", "2015-01-01", 210, status="entered-in-error"),
        prescription("d", "A10BA02", "2015-01-01", status="entered-in-error"),
    ]
    [(values, _)] = records(tmp_path, items).values()
    assert (values["systolic_bp"], values["age"]) == (118.0, 59.0)


@pytest.mark.parametrize("verification", ["refuted", "entered-in-error"])
def test_a_refuted_outcome_makes_nobody_a_case(tmp_path: Path, verification: str) -> None:
    states = {"coding": [{"code": verification}]}
    items = [
        patient(1),
        measured("a", "2009-01-01", 118),
        condition("b", STROKE, "2010-01-01", verificationStatus=states),
        measured("c", "2011-01-01", 125),
        measured("d", "2012-01-01", 140),
    ]
    [(values, outcome)] = records(tmp_path, items).values()
    assert (values["systolic_bp"], outcome) == (125.0, 0.0)


def test_who_was_never_observed_before_the_day_has_no_record(tmp_path: Path) -> None:
    items = [
        *(patient(n) for n in range(1, 6)),
        measured("a", "2012-01-01", 120, 1),
        condition("b", STROKE, "2012-01-01", 1),  # observed on the day of onset only
        measured("c", "2012-01-01", 120, 2),  # a control seen once
        condition("d", "44054006", "2011-01-01", 3),
        prescription("e", "C09AA05", "2012-01-01", 3),  # recorded, never observed
        measured("f", "2011-01-01", 120, 4, status="preliminary"),
        measured("g", "2012-01-01", 120, 4),
        # patient 5 has nothing at all
    ]
    assert records(tmp_path, items) == {}


def test_the_dead_are_of_the_days_they_lived(tmp_path: Path) -> None:
    items = [
        patient(1, deceasedDateTime="2012-03-01T05:00:00Z"),
        measured("a", "2012-01-01", 120, 1),
        measured("b", "2012-02-28", 121, 1),
        measured("c", "2012-03-09", 1, 1),  # recorded after the death, as a certificate is
        patient(2, deceasedDateTime="2012-03-01"),
        measured("d", "2012-01-01", 122, 2),
        condition("e", STROKE, "2012-03-02", 2),  # found after the death
        patient(3, deceasedDateTime="2012-03-01"),
        measured("f", "2012-01-01", 123, 3),
        condition("g", STROKE, "2012-03-01T08:00:00Z", 3),
        patient(4, deceasedBoolean=True),  # nobody knows since when
        measured("h", "2012-01-01", 124, 4),
        measured("i", "2013-01-01", 124, 4),
    ]
    records_by_number = records(tmp_path, items)
    assert {n: (values["systolic_bp"], outcome) for n, (values, outcome) in records_by_number.items()} == {
        1: (121.0, 0.0),
        3: (123.0, 1.0),
    }


def test_only_adults_on_their_own_day_have_a_record(tmp_path: Path) -> None:
    items: list[Any] = []
    for number, born in ((1, "1994-06-01"), (2, "1994-06-02"), (3, "1994-05-31")):
        items += [
            patient(number, birthDate=born),
            measured(f"a{number}", "2011-01-01", 120, number),
            condition(f"b{number}", STROKE, "2012-06-01", number),
        ]
    records_by_number = records(tmp_path, items)
    assert {n: values["age"] for n, (values, _) in records_by_number.items()} == {1: 18.0, 3: 18.0}


def test_who_opted_out_has_no_record(tmp_path: Path) -> None:
    items = [patient(1), patient(2)]
    items += [measured(f"a{n}", "2011-01-01", 120, n) for n in (1, 2)]
    items += [measured(f"b{n}", "2012-01-01", 120, n) for n in (1, 2)]
    assert list(records(tmp_path, items, excluded=(1,))) == [2]


@pytest.mark.parametrize(
    "wrong",
    [
        {"landmarks": ["2010-01-01"]},
        {"horizon_years": 10},
        {"index": "landmark"},
        {"index": "landmark", "landmarks": ["2010-01-01"]},
        {"index": "landmark", "horizon_years": 10},
        {"index": "birth"},
    ],
)
def test_a_profile_that_mixes_the_two_kinds_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        component(**wrong)


def test_synthetic_resources_of_such_a_profile_lie_around_one_public_day() -> None:
    import pandas as pd

    row = {"age": 60.0, "male": True, "systolic_bp": 130.0, "diabetes": True, "antihypertensive": False}
    resources = list(resources_of(component(), "onset", pd.DataFrame([row | {"cvd_10y": True}])))
    onsets = sorted(r["onsetDateTime"] for r in resources if r["resourceType"] == "Condition")
    assert onsets == ["2019-12-31", ONSET_DAY.isoformat()]
