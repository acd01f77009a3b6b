"""One human is one patient to a node's rules: opt-outs, the smallest cohort, feasibility, budgets, the FHIR API."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kit.feasibility_questions import ask as ask_how_many
from kit.feasibility_questions import asked_of, view
from kit.fhir_api_client import Program, serving
from kit.fhir_resources import condition, observation, patient, write
from kit.hospital import Hospital, approved, ask

from connector.fhir import subject_key
from connector.governance.operator_accounts import Actor
from connector.listeners.internal import internal_app
from connector.node import Node
from vht_federate.domain.budget import PrivacyEvent
from vht_federate.domain.split import bucket_of, is_test
from vht_federate.errors import BudgetError, NotFoundError
from vht_federate.privacy.participation import Included
from vht_federate.testing.asgi import AppClient

ADA = Actor("Ada", "approver", "account")
CHEAP = (PrivacyEvent(label="feasibility", population="all", noise_multiplier=20.0),)
DEAR = (PrivacyEvent(label="mean", population="all", noise_multiplier=1.42),)
BEFORE = timedelta(days=9)
OLD, NEW = 0, 100  # ids of one human: of forty patients the first, and the record that took its place


def survivor(*replaced: int, number: int = NEW) -> dict[str, Any]:
    links = [{"type": "replaces", "other": {"reference": f"Patient/p{other}"}} for other in replaced]
    return patient(number, link=links or None, birthDate="1940-05-17", gender="female")


def take(node: Node, hospital: Hospital, *items: dict[str, Any], **more: Any) -> None:
    node.ingest(write(hospital.root / "more", "data.ndjson", items), **more)


def on_side(test: bool, start: int = NEW) -> int:
    return next(number for number in range(start, start + 200) if is_test(bucket_of(f"p{number}")) is test)


@contextmanager
def served(node: Node, hospital: Hospital) -> Iterator[Program]:
    """A program at a node that runs already."""
    web = AppClient(internal_app(node), raise_app_exceptions=False)
    yield Program(node, web).register(hospital.permit())


@pytest.mark.parametrize("out", [OLD, NEW])
@pytest.mark.parametrize("link_first", [True, False])
def test_an_opt_out_under_either_id_holds_for_the_person_whatever_came_first(
    stocked: Hospital, out: int, link_first: bool
) -> None:
    def linked(node: Node) -> None:
        take(node, stocked, survivor(OLD), observation("new", NEW, effectiveDateTime="2009-05-06T07:08:09Z"))

    with asked_of(stocked) as node:
        if link_first:
            linked(node)
        node.opt_out(f"p{out}", since=datetime.now(UTC) - BEFORE, ahead=not link_first)
        if not link_first:
            linked(node)
        assert ask_how_many(node, stocked)["count"] == 39
        visit = ask(node, stocked)
        assert approved(node, visit.id) == "ready"
        manifest = json.loads((node.files.cohort(visit.id) / "manifest.json").read_bytes())
        with served(node, stocked) as program:
            assert len(program.search("Patient")) == 39
            assert len(program.search("Observation")) == 39
        node.withdraw_opt_out(f"p{out}")
    assert manifest["patients"] == 39


def test_without_an_opt_out_the_person_is_counted_once(stocked: Hospital) -> None:
    with asked_of(stocked) as node:
        assert ask_how_many(node, stocked)["count"] == 40
        take(node, stocked, survivor(OLD), observation("new", NEW))
        assert node.overview.patients() == 40
        token = stocked.permit(permit_id="permit-2")
        assert ask_how_many(node, stocked, token, permit_id="permit-2", view=view(where="id.exists()"))["count"] == 40
        high = view("Observation", "value.ofType(Quantity).value > 0")
        assert ask_how_many(node, stocked, token, permit_id="permit-2", view=high)["count"] == 40


@pytest.mark.parametrize(("linked", "state"), [(True, "failed"), (False, "ready")])
def test_two_records_of_one_human_do_not_make_the_smallest_cohort(stocked: Hospital, linked: bool, state: str) -> None:
    """The control is the same record without its link."""
    with stocked.open() as node:
        take(node, stocked, survivor(*[OLD] * linked))
        visit = ask(node, stocked, stocked.permit(minimum_cohort=41))
        assert approved(node, visit.id) == state
        assert (node.visits.get(visit.id).code == "VHT-COHORT-SMALL") is linked


@pytest.mark.parametrize("linked", [True, False])
def test_a_new_id_does_not_open_a_new_account(stocked: Hospital, linked: bool) -> None:
    """What was spent on a human counts under the id that took the place of the old one; the control has no link."""
    new = on_side(is_test(bucket_of(f"p{OLD}")))
    with stocked.open() as node:
        subject = subject_key(node.secret.subject_key, f"p{OLD}")
        spent_on = Included.of([subject], [is_test(bucket_of(f"p{OLD}"))])
        with node.queries.spending("mean", DEAR, ADA, included=spent_on) as query:
            query.draw()
        others = [patient(number) for number in range(1, 40)]
        others += [condition(f"c{number}", "22298006", "2015-01-01", number) for number in range(1, 40, 3)]
        take(node, stocked, survivor(*[OLD] * linked, number=new), *others, replace=True)
        visit = ask(node, stocked)
        if linked:
            with pytest.raises(BudgetError) as caught:
                node.visits.approve(visit.id, ADA)
            assert caught.value.code == "VHT-BUDGET-CAP"
        else:
            assert approved(node, visit.id) == "ready"


@pytest.mark.parametrize("old_is_survivor", [True, False])
def test_a_person_who_was_on_the_test_side_and_is_found_to_train_keeps_nobody_from_a_visit(
    stocked: Hospital, old_is_survivor: bool
) -> None:
    test, train = on_side(True), on_side(False)
    with stocked.open() as node:
        subjects = [subject_key(node.secret.subject_key, f"p{number}") for number in (test, train)]
        with node.queries.spending("count", CHEAP, ADA, included=Included.of(subjects, [True, False])) as query:
            query.draw()
        first, second = (test, train) if old_is_survivor else (train, test)
        take(node, stocked, survivor(second, number=first), patient(second))
        visit = ask(node, stocked)
        assert approved(node, visit.id) == "ready"
        with node.database.read() as session:
            placed = node.ledger.participation.read(session)
        runs = {int(n): placed.groups[g].runs for n, g in zip(placed.subjects, placed.group, strict=True)}
        both = [runs[int(Included.of([subject], [False]).subjects[0])] for subject in subjects]
        assert both == [(query.run.name,), (query.run.name, visit.id)], "charged once, where the person trains"


def test_the_fhir_api_shows_a_person_as_the_patient_who_stands(stocked: Hospital) -> None:
    with stocked.open(start=False) as node:
        take(node, stocked, survivor(OLD), observation("new", NEW))
        key = node.secret.subject_key
    with serving(stocked) as program:
        permit_views, client = program.node.fhir_api.permit_views, program.node.fhir_api.clients.get(program.id)
        assert client is not None
        face = permit_views.view_for(program.node.fhir_api.clients.permit_of(client)).deidentifier
        name, gone = (face.patient(subject_key(key, f"p{number}")) for number in (NEW, OLD))
        patients = {resource["id"]: resource for resource in program.search("Patient")}
        assert len(patients) == 40
        assert name in patients
        assert gone not in patients
        assert program.get(f"Patient/{gone}").status_code == 404
        assert len(program.search(f"Observation?patient={name}")) == 2
        assert program.search(f"Observation?patient={gone}") == []
        exported = program.download(program.await_export(program.export()).json())
        assert len(exported["Patient"]) == 40
        owners = [resource["subject"]["reference"] for resource in exported["Observation"]]
        assert owners.count(f"Patient/{name}") == 2
        assert f"Patient/{gone}" not in owners


def test_an_id_that_a_patient_here_names_can_be_opted_out(stocked: Hospital) -> None:
    with stocked.open(start=False) as node:
        with pytest.raises(NotFoundError):
            node.opt_out("p777")
        take(node, stocked, survivor(777))
        node.opt_out("p777")
    assert stocked.kinds().count("optout.recorded") == 1
