"""A study that could learn nothing here is stopped at its approval: nothing is reserved, only the operator knows."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kit.commands import vht_node
from kit.console_session import Console
from kit.hospital import DATASET, PLAN, Hospital, approved, ask, make_hospital, write_fhir
from kit.served_node import Served

from connector.governance.operator_accounts import Actor
from connector.governance.visit_foresight import Foresight
from vht_federate.domain.split import bucket_of, is_test
from vht_federate.errors import InputError, RefusedError
from vht_federate.privacy.participation import Included

ADA = Actor("Dr Ada", "approver", "account")
RXNORM = "http://www.nlm.nih.gov/research/umls/rxnorm"
Keep = Callable[[str], bool]  # whether a patient's infarct stays


def hospital_where(root: Path, keep: Keep, **change: Any) -> Hospital:
    hospital = make_hospital(root)
    folder = write_fhir(root / "fhir")
    path = folder / "Condition.ndjson"
    conditions = [json.loads(line) for line in path.read_text().splitlines()]
    ill = [one for one in conditions if keep(one["subject"]["reference"].removeprefix("Patient/"))]
    path.write_text("".join(json.dumps(one | change) + "\n" for one in ill) or "\n")
    with hospital.open(start=False) as node:
        node.ingest(folder)
    return hospital


@pytest.fixture
def healthy(tmp_path: Path) -> Iterator[Hospital]:
    hospital = hospital_where(tmp_path, lambda _: False)
    yield hospital
    hospital.issuer.stop()


@pytest.fixture
def untested(tmp_path: Path) -> Iterator[Hospital]:
    hospital = hospital_where(tmp_path, lambda name: not is_test(bucket_of(name)))
    yield hospital
    hospital.issuer.stop()


def refused(node: Any, visit_id: str) -> RefusedError:
    with pytest.raises(RefusedError) as caught:
        node.visits.approve(visit_id, ADA)
    return caught.value


def test_where_nobody_has_the_outcome_approval_fails_before_anything_is_reserved(healthy: Hospital) -> None:
    with healthy.open() as node:
        visit = ask(node, healthy)
        before = healthy.log()
        error = refused(node, visit.id)
        assert error.code == "VHT-REFUSED-OUTCOME"
        assert "--despite-outcome" in (error.hint or "")
        assert node.visits.get(visit.id).state == "requested"
        assert healthy.log() == before, "the evidence log tells nobody of it"
        with node.database.read() as session:
            assert node.ledger.dataset_account(session, DATASET).reservations == ()
            assert not node.ledger.participation.read(session).placed
        assert not healthy.cohort_folders()


def test_the_operator_may_approve_all_the_same_so_that_an_approval_tells_nothing(healthy: Hospital) -> None:
    with healthy.open() as node:
        visit = ask(node, healthy)
        node.visits.approve(visit.id, ADA, despite_outcome=True)
        node.preparation.close()
        assert node.visits.get(visit.id).state == "ready"
    [approval] = [entry["body"] for entry in healthy.log() if entry["kind"] == "visit.approved"]
    assert set(approval) == {"operator", "via", "digest"}


def test_test_patients_without_an_outcome_stop_a_plan_that_evaluates_and_no_other(untested: Hospital) -> None:
    with untested.open() as node:
        visit = ask(node, untested)
        assert refused(node, visit.id).code == "VHT-REFUSED-EVALUATION"
        plan = PLAN.model_copy(update={"evaluation": None})
        other = ask(node, untested, study=untested.study(study_id="study-2", plan=plan))
        assert approved(node, other.id) == "ready"


def test_diagnoses_in_icd_10_gm_are_an_outcome_and_stop_nothing(tmp_path: Path) -> None:
    german = {"coding": [{"system": "http://fhir.de/CodeSystem/bfarm/icd-10-gm", "code": "I21.9"}]}
    hospital = hospital_where(tmp_path, lambda _: True, code=german)
    with hospital.open() as node:
        assert approved(node, ask(node, hospital).id) == "ready"
    [built] = [entry["body"] for entry in hospital.log() if entry["kind"] == "cohort.built"]
    assert set(built["code_maps"]) == {"conditions", "medication"}
    hospital.issuer.stop()


def test_a_cohort_below_the_permits_minimum_ends_as_before(healthy: Hospital) -> None:
    with healthy.open() as node:
        visit = ask(node, healthy, healthy.permit(minimum_cohort=500))
        assert approved(node, visit.id) == "failed"
        assert node.visits.get(visit.id).code == "VHT-COHORT-SMALL"


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([(50, True), (50, False), (1, True), (1, False)], None),
        ([(50, True), (50, True), (1, True), (1, False)], "VHT-REFUSED-OUTCOME"),  # everybody has it
        ([(50, True), (50, False), (1, True), (1, True)], "VHT-REFUSED-EVALUATION"),
        ([(50, True), (50, False)], "VHT-REFUSED-EVALUATION"),  # nobody to test with
        (None, None),
    ],
)
def test_an_outcome_that_everybody_has_teaches_as_little(outcomes: Any, code: str | None) -> None:
    foresight = Foresight(Included.of(["a", "b", "c", "d"], [False, False, True, True]), outcomes)
    if code is None:
        foresight.require_informative(PLAN, 1)
        return
    with pytest.raises(RefusedError) as caught:
        foresight.require_informative(PLAN, 1)
    assert caught.value.code == code
    replace(foresight).require_informative(PLAN, 5)  # below the permit's minimum: that is told elsewhere


def test_a_code_map_that_is_none_fails_the_approval_and_not_the_visit(healthy: Hospital) -> None:
    folder = healthy.state / "code-maps"
    folder.mkdir()
    (folder / "pharmacy.csv").write_text("nonsense\n")
    with healthy.open() as node:
        visit = ask(node, healthy)
        before = healthy.log()
        with pytest.raises(InputError) as caught:
            node.visits.approve(visit.id, ADA)
        assert caught.value.code == "VHT-INPUT-CODE-MAP"
        assert node.visit(visit.id)["unfilled"] is None
        assert node.visits.get(visit.id).state == "requested"
        assert healthy.log() == before


def test_a_code_map_that_breaks_after_the_approval_is_nobody_elses_to_know(healthy: Hospital) -> None:
    with healthy.open() as node:
        visit = ask(node, healthy)
        node.visits.foresee = lambda _: None
        folder = healthy.state / "code-maps"
        folder.mkdir()
        (folder / "pharmacy.csv").write_text("nonsense\n")
        assert approved(node, visit.id) == "failed"
        row = node.visits.get(visit.id)
        assert (row.code, "pharmacy" in row.reason) == ("VHT-COHORT-UNREADABLE", False)


def test_before_an_approval_the_operator_sees_which_columns_stay_empty(healthy: Hospital) -> None:
    with healthy.open() as node:
        visit = ask(node, healthy)
        unfilled = {port["port"]: port for port in node.visit(visit.id)["unfilled"]}
        assert {"antihypertensive", "diabetes", "cvd_10y", "hba1c"} <= set(unfilled)
        assert not {"age", "male", "systolic_bp"} & set(unfilled)
        assert unfilled["antihypertensive"]["then"] == "everybody counts as no"
        assert unfilled["cvd_10y"]["then"] == "nobody has the outcome"
        assert unfilled["hba1c"]["then"] == "it is missing of everybody"
        console = Console(node, healthy)
        console.log_in()
        page = console.browser.get(f"/visits/{visit.id}").text
        assert "can never be filled" in page
        assert "antihypertensive" in page
        form = {"form_key": console.form_key()}
        assert "VHT-REFUSED-OUTCOME" in console.browser.post(f"/visits/{visit.id}/approve", data=form).text
        answer = console.browser.post(f"/visits/{visit.id}/approve", data=form | {"despite_outcome": "true"})
        assert answer.status_code == 303
        assert node.visits.get(visit.id).state != "requested"
        assert node.visit(visit.id)["unfilled"] == []


def test_the_command_line_stops_and_goes_on_at_the_operators_word(healthy: Hospital) -> None:
    with healthy.open(start=False) as node:
        node.accounts.add("Dr Ada", "approver", "correct horse")
    served = Served(healthy)
    try:
        served.await_health()
        body = {"permit": healthy.permit(), "study": healthy.study(), "user_key": healthy.user.public.jwk()}
        with served.client() as client:
            made = dict(client.post("/visits", json=body, headers=healthy.headers()))
        path = f"/visits/{made['visit']}"
        assert vht_node("show", healthy.state, made["visit"])["unfilled"]
        with pytest.raises(RefusedError) as caught:
            vht_node("approve", healthy.state, made["visit"], "--operator", "Dr Ada")
        assert caught.value.code == "VHT-REFUSED-OUTCOME"
        with served.client() as client:  # the coordinator learns what it knew: nobody decided yet
            told = client.get(path, headers=healthy.headers("GET", path, made["token"]))
        assert (told["state"], told.get("code"), told.get("reason")) == ("requested", None, "")
        vht_node("approve", healthy.state, made["visit"], "--operator", "Dr Ada", "--despite-outcome")
    finally:
        served.end()
