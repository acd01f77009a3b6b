"""Feasibility: counts with noise under a permit and the ledger, one answer to one question, evidence of each."""

import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kit.feasibility_questions import HIGH, INFARCT, ask, asked_of, question, view
from kit.hospital import DATASET, Hospital
from kit.hospital import ask as request_visit

from connector.governance.feasibility import STANDS
from connector.governance.ledger_export import export_ledger
from connector.node import Node
from connector.store.models import FhirClientRow
from vht_federate.errors import BudgetError, UnavailableError
from vht_federate.signing.keys import SigningKey
from vht_federate.testing.noise import SeededNoise

COUNTS = [
    (view(where="gender = 'male'"), 20),
    (view("Observation", HIGH), 30),
    (view("Condition", INFARCT), 10),
    (view("Observation", "value.ofType(Quantity).value > 145"), None),
    (view(where="gender = 'other'"), None),
]


def test_a_count_is_of_the_patients_who_meet_the_definition(stocked: Hospital) -> None:
    with asked_of(stocked) as node:
        for definition, count in COUNTS:
            answer = ask(node, stocked, view=definition)
            assert (answer["count"], answer["smallest_cell"], answer["code"], answer["repeated"]) == (
                count,
                10,
                None,
                False,
            )


def test_the_answer_carries_the_noise_that_the_ledger_paid_for(stocked: Hospital) -> None:
    with asked_of(stocked, silent=False) as node:
        node.feasibility.noise = lambda: SeededNoise(7)
        answer = ask(node, stocked, view=view(), epsilon=0.3)
        deviation = answer["standard_deviation"]
        assert 5 < deviation < 30
        expected = round(40 + deviation * SeededNoise(7).gaussian((1,))[0])
        assert answer["count"] == (expected if expected >= 10 else None)
        [query] = [entry for entry in stocked.log() if entry["kind"] == "query.drawn"]
        [answered] = [entry for entry in stocked.log() if entry["kind"] == "feasibility.answered"]
        events = query["body"]["events"]
        assert (len(events), events[0]["population"], events[0]["noise_multiplier"]) == (1, "all", deviation)
        assert query["body"]["operator"] == "Institute"
        assert answered["index"] == query["index"] + 1
        assert (answered["body"]["count"], answered["body"]["query"]) == (answer["count"], query["body"]["query"])
        assert answered["permit_id"] == query["permit_id"] == "permit-1"
        spent = node.overview.budget()["datasets"][DATASET]["spent"]
        assert 0.29 < spent["train"] <= 0.3
        assert spent["test"] == spent["train"]


def test_the_same_question_again_is_told_the_same_and_costs_nothing_more(stocked: Hospital) -> None:
    other = SigningKey.generate()
    with asked_of(stocked, silent=False) as node:
        first = ask(node, stocked)
        spent = node.overview.budget()["datasets"][DATASET]["spent"]
        again = [ask(node, stocked, title="Asked anew") for _ in range(3)]
        assert {answer["count"] for answer in again} == {first["count"]}
        assert all(answer["repeated"] for answer in again)
        colleague = stocked.permit(
            permit_id="permit-2", data_users=({"name": "Other", "kind": "academic", "kid": other.public.kid},)
        )
        assert ask(node, stocked, colleague, permit_id="permit-2", key=other)["count"] == first["count"]
        assert node.overview.budget()["datasets"][DATASET]["spent"] == spent
        assert stocked.kinds().count("query.drawn") == stocked.kinds().count("feasibility.answered") == 1
        assert ask(node, stocked, view=view(where="gender = 'male'"))["repeated"] is False


def test_an_answer_is_told_by_the_smallest_cell_of_today(stocked: Hospital) -> None:
    with asked_of(stocked) as node:
        assert ask(node, stocked)["count"] == 40
        node.feasibility.settings = node.feasibility.settings.model_copy(update={"smallest_cell": 50})
        again = ask(node, stocked)
        assert (again["count"], again["smallest_cell"], again["repeated"]) == (None, 50, True)


def test_after_its_time_a_question_is_answered_anew_at_its_cost(stocked: Hospital) -> None:
    with asked_of(stocked) as node:
        ask(node, stocked)
        now = datetime.now(UTC)
        node.feasibility.clock = lambda: now + STANDS + timedelta(seconds=1)
        assert ask(node, stocked)["repeated"] is False
        assert stocked.kinds().count("query.drawn") == 2


def test_a_permit_that_paid_for_questions_alone_is_in_the_budget_and_in_the_auditors_ledger(stocked: Hospital) -> None:
    with asked_of(stocked) as node:
        token = stocked.permit()
        request_visit(node, stocked, token)  # waits for an operator: it reserved nothing
        assert node.overview.budget()["permits"] == {}
        ask(node, stocked, token)
        budget = node.overview.budget()
        assert 0.29 < budget["permits"]["permit-1"]["spent"]["train"] <= 0.3
        assert "permit-1" in {line["of"] for line in budget["patients"]}
        client = stocked.permit(permit_id="permit-2")
        keys = {"keys": [SigningKey.generate().public.jwk()]}
        with node.database.write() as session:
            session.add(
                FhirClientRow(
                    id="c-1", name="Program", permit_id="permit-2", permit=client, scope="system/*.rs", jwks=keys,
                    registered_at=datetime.now(UTC), registered_by="Ada",
                )
            )  # fmt: skip
        ask(node, stocked, client, permit_id="permit-2", view=view(where="gender = 'male'"))
        assert set(node.overview.budget()["permits"]) == {"permit-1", "permit-2"}
        with node.database.read() as session:
            exported = export_ledger(session, node.ledger, node.settings, node.key, datetime.now(UTC))
        assert {cap.of for cap in exported.caps if cap.name == "permit"} == {"permit-1", "permit-2"}


def test_many_at_once_ask_one_question_once(stocked: Hospital) -> None:
    with asked_of(stocked, silent=False) as node:
        counts: list[Any] = []
        permit, signed = stocked.permit(), question(stocked)

        def patiently_asked() -> None:
            while True:
                with suppress(UnavailableError):  # two at a time: the others come again
                    counts.append(node.feasibility.answer(permit, signed, stocked.user.public.jwk())["count"])
                    return

        threads = [threading.Thread(target=patiently_asked) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert len(counts) == 6
        assert len(set(counts)) == 1
        assert stocked.kinds().count("query.drawn") == 1


def test_patients_who_opted_out_and_inactive_ones_are_not_counted(stocked: Hospital) -> None:
    with asked_of(stocked) as node:
        node.opt_out("p0", since=datetime.now(UTC) - timedelta(days=9))
        node.opt_out("p1", since=datetime.now(UTC) - timedelta(days=9))
        assert ask(node, stocked)["count"] == 38
        forced = stocked.permit(permit_id="permit-2", overrides_opt_out=True)
        assert ask(node, stocked, forced, permit_id="permit-2", view=view(where="id.exists()"))["count"] == 40


def until_refused(node: Node, hospital: Hospital, permit: str) -> tuple[int, BudgetError]:
    """How many questions at epsilon 0.3 were answered, and what the next one met."""
    for number in range(10):
        try:
            ask(node, hospital, permit, permit_id="small", view=view(where=f"birthDate > @19{50 + number}-01-01"))
        except BudgetError as error:
            return number, error
    pytest.fail("ten questions were answered")


def test_when_the_cap_is_reached_the_question_is_refused_and_that_is_logged(stocked: Hospital) -> None:
    with asked_of(stocked) as node:
        permit = stocked.permit(permit_id="small", epsilon=0.5)
        answered, error = until_refused(node, stocked, permit)
        assert error.code == "VHT-BUDGET-PERMIT"
        assert 1 <= answered < 5
        refused = stocked.log()[-1]
        assert (refused["kind"], refused["body"]["code"]) == ("permit.checked", "VHT-BUDGET-PERMIT")
        assert stocked.kinds().count("query.drawn") == answered
        with pytest.raises(BudgetError) as dear:
            ask(node, stocked, epsilon=5.0)
        assert dear.value.code == "VHT-BUDGET-QUESTION"
