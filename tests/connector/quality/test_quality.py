"""Mapping quality: what a study finds and loses is what its cohort would hold; small numbers stay with the operator."""

import re
from pathlib import Path
from typing import Any

import pytest
from kit.commands import vht_node
from kit.console_session import Console
from kit.fhir_resources import KEY, LOINC, condition, observation, patient, prescription, quantity, write
from kit.hospital import COMPONENT, PROFILE, Hospital, write_fhir
from kit.served_node import Served

from connector.fhir import Store, ingest, subject_key
from connector.quality import Survey, survey
from connector.quality.survey_figures import CountDisclosure
from connector.views import CohortSpecification, build_cohort
from vht_federate.components.registry import installed
from vht_federate.errors import CohortError, InputError, VhtError

CARDIO = COMPONENT.component


def loinc(code: str, ident: str, number: int, value: Any, **more: Any) -> dict[str, Any]:
    return observation(ident, number, code={"coding": [{"system": LOINC, "code": code}]}, valueQuantity=value, **more)


def surveyed(tmp_path: Path, items: list[Any], excluded: set[str] = frozenset()) -> Survey:  # type: ignore[assignment]
    folder, store = write(tmp_path / "in", "a.ndjson", items), tmp_path / "store"
    ingest(folder, store, node_key=KEY, dataset="d")
    return survey(store, CARDIO, PROFILE, excluded_subjects={subject_key(KEY, ident) for ident in excluded})


def feature(survey_result: Survey, name: str) -> Any:
    return next(candidate for candidate in survey_result.features if candidate.name == name)


def test_a_feature_counts_patients_with_a_usable_value_before_the_day(tmp_path: Path) -> None:
    mmol, milli = quantity(5.0, "mmol/L"), quantity(200, "mg/dL")
    study_survey = surveyed(tmp_path, [
        *(patient(number) for number in range(1, 7)),
        loinc("2093-3", "a", 1, milli),
        loinc("2093-3", "b", 1, milli, effectiveDateTime="2008-01-01"),
        loinc("14647-2", "c", 2, mmol),
        loinc("2093-3", "late", 3, milli, effectiveDateTime="2019-01-01"),
        loinc("2093-3", "draft", 4, milli, status="preliminary"),
        loinc("2093-3", "wrong", 5, quantity(3, "furlong")),
        condition("d", "44054006", "2001", 6),
        prescription("m", "C09AA05", "2005", 1),
    ])  # fmt: skip
    cholesterol = feature(study_survey, "total_cholesterol")
    assert (cholesterol.patients, cholesterol.values, study_survey.course.patients) == (2, 5, 6)
    units = {(unit.code, unit.unit): (unit.values, unit.patients, unit.use) for unit in cholesterol.units}
    assert units == {("2093-3", "mg/dL"): (4, 3, "as-it-is"), ("14647-2", "mmol/L"): (1, 1, "converted")}
    assert (feature(study_survey, "diabetes").patients, feature(study_survey, "diabetes").absent_means) == (1, "no")
    assert feature(study_survey, "antihypertensive").patients == 1
    assert feature(study_survey, "age").patients == 6
    assert study_survey.quarantine == {("value", "unknown-unit", "Observation.valueQuantity"): 1}
    assert sum(study_survey.course.missing.values()) == 6


def test_each_patient_without_a_record_is_lost_for_one_reason(tmp_path: Path) -> None:
    study_survey = surveyed(tmp_path, [
        *(patient(number) for number in range(1, 10)),
        patient(10, active=False),
        patient(11, link=[{"type": "replaced-by", "other": {"display": "nobody knows"}}]),
        patient(16, link=[{"type": "replaced-by", "other": {"reference": "Patient/p2"}}]),
        patient(12, deceasedDateTime="1999-01-01"),
        patient(13, birthDate="2005-05-05"),
        patient(14, birthDate=None),
        patient(15),
        condition("before", "22298006", "2004-01-01", 15),
        condition("within", "22298006", "2015-01-01", 1),
    ], {"p9"})  # fmt: skip
    lost = {loss.reason: loss.patients for loss in study_survey.losses}
    assert lost == {
        "inactive": 2, "opted-out": 1, "dead": 1, "under-age": 1, "no-birth-date": 1, "outcome-before": 1,
    }  # fmt: skip
    assert study_survey.store_patients == 15 == study_survey.course.patients + sum(lost.values())
    assert study_survey.course.outcomes == 1
    assert study_survey.course.unobserved == 0, "nothing is known of when the data of the others end"


def test_patients_outside_the_inclusion_criteria_are_lost_for_that(tmp_path: Path) -> None:
    men = {
        "resource": "Patient",
        "select": [{"column": [{"name": "patient", "path": "getResourceKey()"}]}],
        "where": [{"path": "gender = 'male'"}],
    }
    changed = CARDIO.profile(PROFILE).model_copy(update={"cohort": "men.json"})
    component = CARDIO.model_copy(update={"profiles": {PROFILE: changed}})
    items = [patient(number, gender="male" if number % 3 else "female") for number in range(1, 13)]
    folder, store = write(tmp_path / "in", "a.ndjson", items), tmp_path / "store"
    ingest(folder, store, node_key=KEY, dataset="d")
    study_survey = survey(store, component, PROFILE, excluded_subjects={subject_key(KEY, "p3")}, cohort_view=men)
    assert {loss.reason: loss.patients for loss in study_survey.losses} == {"not-included": 3, "opted-out": 1}
    assert study_survey.course.patients == 8


def test_a_patient_whose_data_end_before_the_window_was_not_seen_to_stay_well(tmp_path: Path) -> None:
    study_survey = surveyed(tmp_path, [
        *(patient(number) for number in range(1, 5)),
        observation("short", 1, effectiveDateTime="2010-06-01"),
        observation("long", 2, effectiveDateTime="2023-06-01"),
        observation("ill", 3, effectiveDateTime="2010-06-01"), condition("c", "22298006", "2013-01-01", 3),
        observation("died", 4, effectiveDateTime="2010-06-01"),
        patient(5, deceasedDateTime="2014-01-01"), observation("died-too", 5, effectiveDateTime="2010-06-01"),
    ])  # fmt: skip
    assert study_survey.course.unobserved == 2


@pytest.mark.parametrize(("name", "loaded"), sorted(installed().items()))
def test_the_survey_counts_the_patients_and_cells_that_a_cohort_would_hold(
    tmp_path: Path, name: str, loaded: Any
) -> None:
    import numpy as np
    from safetensors.numpy import load_file

    from vht_federate.samples.generator import generate

    generate(tmp_path / "in", hospitals=1, patients=120, seed=4)
    ingest(tmp_path / "in" / "hospital-1", tmp_path / "store", node_key=KEY, dataset="d")
    for profile, chosen in loaded.component.profiles.items():
        study_survey = survey(tmp_path / "store", loaded.component, profile, excluded_subjects=set())
        if chosen.layout != "tabular" or not study_survey.course.patients:
            continue
        specification = CohortSpecification.of_every_column(loaded.component, profile)
        manifest = build_cohort(tmp_path / "store", specification, tmp_path / profile / "cohort")
        assert (study_survey.course.patients, study_survey.course.records) == (manifest.patients, manifest.records)
        tensors = load_file(tmp_path / profile / "cohort" / "cohort.safetensors")
        for place, surveyed_feature in enumerate(study_survey.features):
            known = np.isfinite(tensors["values"][:, place])
            if surveyed_feature.absent_means == "no":
                known = tensors["values"][:, place] == 1.0
            assert surveyed_feature.patients == len(set(tensors["patient"][known].tolist())), (
                name,
                surveyed_feature.name,
            )


def test_what_is_passed_on_is_rounded_and_tells_nothing_of_a_few(tmp_path: Path) -> None:
    study_survey = surveyed(tmp_path, [
        *(patient(number) for number in range(1, 44)),
        *(observation(f"o{number}", number) for number in range(1, 38)),
        *(loinc("2093-3", f"c{number}-{turn}", number, quantity(200, "mg/dL"))
          for number in range(1, 4) for turn in range(40)),
        condition("c", "22298006", "2015-01-01", 1),
        observation("x", 1, status="done"),
    ])  # fmt: skip
    exact, passed = study_survey.to_dict(CountDisclosure()), study_survey.to_dict(CountDisclosure(10))
    assert (exact["cohort"]["patients"], passed["cohort"]["patients"]) == (43, 40)
    assert (exact["cohort"]["outcomes"], passed["cohort"]["outcomes"]) == (1, None)
    by_name = {entry["name"]: entry for entry in passed["features"]}
    assert (by_name["systolic_bp"]["patients"], by_name["systolic_bp"]["share"]) == (40, 1.0)
    few = by_name["total_cholesterol"]
    assert (few["patients"], few["values"], few["share"], few["units"][0]["values"]) == (None, None, None, None)
    holdings = {holding["type"]: holding for holding in passed["holdings"]}
    assert holdings["Observation"]["first"] == "2009"
    assert holdings["Observation"]["per_patient"]["most"] is None
    assert holdings["Condition"]["first"] is None
    assert passed["quarantine"][0]["entries"] is None

    def counts(node: Any) -> list[int]:
        if isinstance(node, dict):
            not_counts = ("generation", "horizon_years", "smallest_cell", "share", "median", "ninth_decile")
            return [n for key, child in node.items() if key not in not_counts for n in counts(child)]
        if isinstance(node, list):
            return [n for child in node for n in counts(child)]
        return [node] if isinstance(node, int) else []

    assert counts(passed)
    assert all(number % 10 == 0 and number >= 10 for number in counts(passed))


def test_before_the_first_intake_and_of_unknown_names_there_is_a_typed_error(tmp_path: Path) -> None:
    with pytest.raises(CohortError) as caught:
        survey(tmp_path / "store", CARDIO, PROFILE, excluded_subjects=set())
    assert caught.value.code == "VHT-COHORT-EMPTY-STORE"
    with pytest.raises(InputError) as refused:
        survey(tmp_path / "store", CARDIO, "nonsense", excluded_subjects=set())
    assert refused.value.code == "VHT-INPUT-PROFILE"


def test_the_command_tells_all_profiles_or_one_and_counts_opt_outs_of_today(stocked: Hospital) -> None:
    report = vht_node("quality", stocked.state, "--component", "cardio-risk", "--profile", PROFILE)
    [study_survey] = report["surveys"]
    assert (study_survey["store_patients"], study_survey["cohort"]["patients"]) == (40, 40)
    vht_node("opt-out", stocked.state, "p3")
    [again] = vht_node("quality", stocked.state, "--component", "cardio-risk", "--profile", PROFILE)["surveys"]
    assert {loss["reason"]: loss["patients"] for loss in again["losses"]} == {"opted-out": 1}
    assert len(vht_node("quality", stocked.state)["surveys"]) == sum(
        len(entry.component.profiles) for entry in installed().values()
    )
    [shared] = vht_node("quality", stocked.state, "--component", "cardio-risk", "--profile", PROFILE, "--shareable")[
        "surveys"
    ]
    assert shared["losses"] == [{"reason": "opted-out", "says": shared["losses"][0]["says"], "patients": None}]
    with pytest.raises(InputError):
        vht_node("quality", stocked.state, "--component", "cardio-risk", "--profile", "nonsense")


def test_the_page_shows_the_same_numbers_and_needs_a_session(stocked: Hospital) -> None:
    with stocked.open() as node:
        console = Console(node, stocked)
        assert console.browser.get("/quality").status_code == 303
        console.log_in()
        page = console.browser.get("/quality", params={"study": f"cardio-risk/{PROFILE}"}).text
        assert "What the study would lose" in page
        assert "Systolic blood pressure" in page
        assert re.search(r"in the study's cohort</dt><dd>40<", page)
        assert "style=" not in page
        passed = console.browser.get(
            "/quality", params={"study": f"cardio-risk/{PROFILE}", "numbers": "shareable"}
        ).text
        assert "Rounded to ten" in passed
        assert console.browser.get("/quality", params={"study": "nonsense/x"}).status_code == 400


def test_before_the_first_intake_the_page_says_so(hospital: Hospital) -> None:
    with hospital.open() as node:
        console = Console(node, hospital)
        console.log_in()
        assert "No data yet" in console.browser.get("/quality").text


def test_a_survey_is_made_once_for_one_state_of_the_store(stocked: Hospital) -> None:
    with stocked.open(start=False) as node:
        first = node.surveys.of("cardio-risk", PROFILE)
        assert node.surveys.of("cardio-risk", PROFILE) is first
        node.opt_out("p1")
        assert node.surveys.of("cardio-risk", PROFILE) is not first
        second = node.surveys.of("cardio-risk", PROFILE)
        node.ingest(write_fhir(stocked.root / "more", 41))
        assert node.surveys.of("cardio-risk", PROFILE) is not second
        generation = Store(stocked.state / "fhir").current()
        assert generation is not None
        assert not list((stocked.state / "fhir").glob("survey-*")), "nothing is left behind"


def test_a_node_that_runs_tells_its_operator_alone(stocked: Hospital) -> None:
    served = Served(stocked)
    try:
        served.await_health()
        report = vht_node("quality", stocked.state, "--component", "cardio-risk", "--profile", PROFILE)
        assert report["surveys"][0]["cohort"]["patients"] == 40
        with served.client() as stranger, pytest.raises(VhtError):
            stranger.get("/api/quality")
    finally:
        served.end()
