"""Budgets of patients at a whole node: narrowed to the cohort, shown to operators, exported, computed again."""

import json
from contextvars import copy_context
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kit.hospital import DATASET, PLAN, Hospital, approved, ask
from typer.testing import CliRunner

from connector.fhir import subject_key
from connector.governance.operator_accounts import Actor
from connector.listeners.internal import internal_app
from connector.node import Node
from connector.store.models import VisitRow
from vht_federate.cli import app
from vht_federate.domain.budget import PrivacyEvent
from vht_federate.domain.split import bucket_of, is_test
from vht_federate.errors import BudgetError
from vht_federate.evidence.ledger_file import LedgerFile
from vht_federate.privacy.accounting import epsilon_by_population
from vht_federate.privacy.participation import Included
from vht_federate.signing.keys import SigningKey
from vht_federate.testing.asgi import AppClient

DIGEST = "ab" * 32
ADA = Actor("Ada", "approver", "account")
COUNT = (PrivacyEvent(label="feasibility", population="all", noise_multiplier=20.0),)
DEAR = (PrivacyEvent(label="mean", population="all", noise_multiplier=1.42),)


def people(node: Node, *names: str) -> Included:
    subjects = [subject_key(node.secret.subject_key, name) for name in names]
    return Included.of(subjects, [is_test(bucket_of(name)) for name in names])


def vht(*arguments: str, expect: int = 0) -> dict[str, Any]:
    done = copy_context().run(CliRunner().invoke, app, ["--json", *arguments])
    assert done.exit_code == expect, done.output
    return dict(json.loads(done.stdout))


def test_a_ready_visit_is_in_the_history_of_its_patients_and_of_nobody_else(stocked: Hospital) -> None:
    with stocked.open() as node:
        visit = ask(node, stocked)
        assert node.overview.visit(visit.id)["able"] == {"patient": 40, "permit": 40, "patients": 40}
        assert approved(node, visit.id) == "ready"
        node.gate.begin(visit.id, "train", 1, DIGEST)
        with node.database.read() as session:
            participation = node.ledger.participation.read(session)
        cohort = json.loads((node.files.cohort(visit.id) / "manifest.json").read_bytes())
        assert len(participation) == cohort["patients"]
        assert participation.placed == {visit.id}
        (line, permit) = node.overview.budget()["patients"]
        assert (line["cap"], line["of"], line["patients"], line["untouched"]) == (
            "patient", None, 40, 40 - cohort["patients"])  # fmt: skip
        assert (permit["cap"], permit["of"]) == ("permit", "permit-1")


def test_a_cohort_with_one_exhausted_patient_is_not_approved(stocked: Hospital) -> None:
    """The approval itself says no: nobody is told "approved" of a visit that is bound to fail."""
    with stocked.open() as node:
        with node.queries.spending("mean", DEAR, ADA, included=people(node, "p3")) as query:
            query.draw()
        visit = ask(node, stocked)
        assert node.overview.visit(visit.id)["able"]["patient"] == 39
        with pytest.raises(BudgetError) as caught:
            node.visits.approve(visit.id, ADA)
        assert caught.value.code == "VHT-BUDGET-CAP"
        assert node.visits.get(visit.id).state == "requested"
        with node.database.read() as session:
            assert node.ledger.participation.read(session).placed == {query.run.name}
            assert node.ledger.dataset_account(session, DATASET).reservations == ()
        assert node.visits.reject(visit.id, ADA, "the cap is reached").state == "rejected"
    assert not stocked.cohort_folders()
    assert not {"visit.approved", "budget.reserved", "cohort.built"} & set(stocked.kinds())
    assert stocked.kinds().count("permit.checked") == 2  # accepted, then refused at the approval


def test_an_exhausted_patient_outside_the_cohort_keeps_nothing_from_approval(stocked: Hospital) -> None:
    """The control: it is the cohort that is judged, not the dataset."""
    with stocked.open() as node:
        with node.queries.spending("mean", DEAR, ADA, included=people(node, "p3")) as query:
            query.draw()
        node.opt_out("p3", since=datetime.now(UTC) - timedelta(days=9))
        assert approved(node, ask(node, stocked).id) == "ready"


def test_a_patient_who_was_exhausted_after_the_approval_ends_the_visit_and_gives_everything_back(
    stocked: Hospital,
) -> None:
    with stocked.open() as node:
        visit = ask(node, stocked)
        look = node.visits.foresee

        def then_exhausted(row: VisitRow) -> Included | None:
            included = look(row)
            with node.queries.spending("mean", DEAR, ADA, included=people(node, "p3")) as query:
                query.draw()
            return included

        node.visits.foresee = then_exhausted
        with pytest.raises(BudgetError):  # judged again where the budget is reserved
            node.visits.approve(visit.id, ADA)
        node.visits.foresee = lambda _: None  # where it cannot be foreseen the preparation has the last word
        assert approved(node, visit.id) == "failed"
        assert node.visits.get(visit.id).code == "VHT-BUDGET-CAP"
        with node.database.read() as session:
            assert node.ledger.dataset_account(session, DATASET).reservations == ()
    assert not stocked.cohort_folders()
    assert "cohort.built" not in stocked.kinds()


def test_when_too_few_patients_could_pay_a_visit_is_refused_at_once(stocked: Hospital) -> None:
    with stocked.open() as node:
        names = [f"p{number}" for number in range(35)]
        with node.queries.spending("mean", DEAR, ADA, included=people(node, *names)) as query:
            query.draw()
        with pytest.raises(BudgetError) as caught:
            ask(node, stocked)
        assert caught.value.code == "VHT-BUDGET-CAP"


def test_a_query_gives_back_unless_it_drew_and_its_spend_outlives_the_database(stocked: Hospital) -> None:
    with stocked.open() as node:
        with node.queries.spending("feasibility", COUNT, ADA):
            assert node.overview.budget()["datasets"][DATASET]["reserved"]["train"] > 0
        with node.queries.spending("feasibility", COUNT, ADA) as query:
            query.draw()
            with pytest.raises(BudgetError):
                query.draw()
        spent = node.overview.budget()["datasets"][DATASET]["spent"]
        assert spent == pytest.approx(epsilon_by_population(COUNT, 1e-5))
    assert stocked.kinds().count("query.drawn") == 1
    for path in stocked.state.glob("node.sqlite*"):
        path.unlink()
    with stocked.open() as node:
        assert node.overview.budget()["datasets"][DATASET]["spent"] == pytest.approx(spent)


def test_a_query_that_a_crash_left_reserved_gives_back_at_the_next_start(stocked: Hospital) -> None:
    with stocked.open() as node:
        node.queries.spending("feasibility", COUNT, ADA, included=people(node, "p1")).__enter__()
    with stocked.open() as node:
        assert node.overview.budget()["datasets"][DATASET]["if_spent"]["train"] == 0
        with node.database.read() as session:
            assert len(node.ledger.participation.read(session)) == 0


@pytest.fixture
def spent(stocked: Hospital) -> Hospital:
    """A node whose visit began two calls, and whose one patient was in a query of its own."""
    with stocked.open() as node:
        visit = ask(node, stocked)
        approved(node, visit.id)
        node.gate.begin(visit.id, "train", 1, DIGEST)
        node.gate.begin(visit.id, "evaluate", 1, DIGEST)
        with node.queries.spending("feasibility", COUNT, ADA, included=people(node, "p0")) as query:
            query.draw()
    return stocked


def test_an_auditor_computes_the_ledger_again_from_its_events_alone(spent: Hospital, tmp_path: Path) -> None:
    out, public = tmp_path / "ledger.json", tmp_path / "node.pub.json"
    SigningKey.read(spent.state / "evidence.key").public.write(public)
    vht("node", "ledger", "export", str(spent.state), "--out", str(out))
    audit = vht("audit", "ledger", str(out), "--key", str(public))["data"]
    drew = (*PLAN.events_of("train", 1), *PLAN.events_of("evaluate", 1))
    assert audit["spent"]["permit permit-1"] == pytest.approx(epsilon_by_population(drew, 1e-5))
    assert audit["spent"][f"dataset {DATASET}"] == pytest.approx(epsilon_by_population((*drew, *COUNT), 1e-5))
    assert (audit["signed"], audit["runs"]) == (True, 2)
    with spent.open(start=False) as node:
        subjects = [subject_key(node.secret.subject_key, f"p{number}") for number in range(40)]
    text = out.read_text()
    assert not any(subject[:12] in text or str(int(subject[:16], 16)) in text for subject in subjects)
    groups = LedgerFile.read(out).groups
    assert groups
    assert all(group.patients % 10 == 0 and len(group.runs) == 1 for group in groups)  # p0's own group is not shown


def test_a_changed_number_or_another_signature_is_found(spent: Hospital, tmp_path: Path) -> None:
    out, stranger = tmp_path / "ledger.json", tmp_path / "stranger.pub.json"
    SigningKey.generate().public.write(stranger)
    vht("node", "ledger", "export", str(spent.state), "--out", str(out))
    assert vht("audit", "ledger", str(out), "--key", str(stranger), expect=4)["error"]["code"] == "VHT-VERIFY-LEDGER"
    ledger = json.loads(out.read_text())

    def changed(*path: Any, value: Any) -> dict[str, Any]:
        copy = json.loads(json.dumps(ledger))
        place = copy
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = value
        return dict(copy)

    changes = {
        "fewer events": changed("runs", 0, "drew", value=ledger["runs"][0]["drew"][1:]),
        "more noise": changed("runs", 0, "drew", 0, "noise_multiplier", value=40.0),
        "less for a group": changed("groups", 0, "epsilon", value=0.0),
        "a group outside all runs": changed("groups", 0, "runs", value=["v-0"]),
        "a permit passed": changed("caps", 1, "epsilon", value=0.01),
        "a cap passed": changed("caps", 0, "epsilon", value=0.01),
        "a small cell": changed("groups", 0, "patients", value=3),
    }
    for change, content in changes.items():
        out.write_text(json.dumps(content))
        assert vht("audit", "ledger", str(out), expect=4)["error"]["code"] == "VHT-VERIFY-LEDGER", change
    out.write_text(json.dumps({**ledger, "more": 1}))
    assert vht("audit", "ledger", str(out), expect=2)["error"]["code"] == "VHT-INPUT-LEDGER"


def test_the_budget_is_shown_beside_a_node_and_on_its_console(spent: Hospital) -> None:
    lines = vht("node", "budget", str(spent.state))["data"]["patients"]
    assert [line["cap"] for line in lines] == ["patient", "permit"]
    assert lines[0]["patients"] == 40
    with spent.open() as node:
        node.accounts.add("Ada", "approver", "battery staple")
        browser = AppClient(internal_app(node))
        browser.post("/login", data={"name": "Ada", "password": "battery staple"})
        waiting = ask(node, spent, study=spent.study(study_id="study-2"))
        page, visit = browser.get("/").text, browser.get(f"/visits/{waiting.id}").text
    assert "half or more left" in page
    assert "40 of 40 patients could pay for this plan" in visit
