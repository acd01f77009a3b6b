"""A commit that fails after its log entry, as on a full disk: the running node's database follows the log."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from kit.hospital import DATASET, PLAN, Hospital, approved, ask, await_that, event
from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from connector.governance.operator_accounts import Actor
from connector.governance.recovery import LogRecovery
from connector.node import Node
from connector.store.models import Acknowledgement, OptOutRow
from vht_federate.errors import UnavailableError, VhtError
from vht_federate.evidence.entry import TreeHead
from vht_federate.evidence.ledger_check import check_ledger
from vht_federate.evidence.node_log import read_node_log
from vht_federate.evidence.visit_record import VisitRecord, visit_records
from vht_federate.privacy.accounting import epsilon_by_population
from vht_federate.signing.canonical import canonical_bytes

DIGEST = "ab" * 32
ADA = Actor("Dr Ada", "approver", "account")
NOTHING = {"train": 0.0, "test": 0.0}


@contextmanager
def full_disk() -> Iterator[None]:
    """The log's short lines fit, no commit does."""
    with pytest.MonkeyPatch.context() as patch:

        def commit(_: Session) -> None:
            raise OperationalError("COMMIT", {}, sqlite3.OperationalError("database or disk is full"))

        patch.setattr(Session, "commit", commit)
        yield


@contextmanager
def unavailable() -> Iterator[None]:
    with pytest.raises(UnavailableError) as caught:
        yield
    assert caught.value.code == "VHT-UNAVAILABLE-DATABASE"


def record(node: Node, visit: str) -> VisitRecord:
    """The visit as an auditor reads it, after the checks of ``vht audit verify`` on one node's log."""
    export = canonical_bytes(node.evidence.export("permit-1"))
    log = read_node_log("nodes/hospital-1.json", export, "hospital-1", "permit-1", node.key.public)
    return visit_records(log)[visit]


def audited(node: Node, visit: str) -> dict[str, float]:
    """What the visit spent: log, database and auditor say the same."""
    spent = check_ledger(record(node, visit), epsilon_by_population)
    assert node.overview.budget()["datasets"][DATASET]["spent"] == pytest.approx(spent)
    return spent


def cost(*calls: tuple[str, int]) -> object:
    return pytest.approx(epsilon_by_population([e for call in calls for e in PLAN.events_of(*call)], PLAN.delta))


def ready(node: Node, hospital: Hospital) -> str:
    visit = str(ask(node, hospital).id)
    assert approved(node, visit) == "ready"
    return visit


def test_a_round_whose_commit_failed_is_spent_and_the_visit_closes_with_it(stocked: Hospital) -> None:
    with stocked.open() as node:
        visit = ready(node, stocked)
        with full_disk(), unavailable():
            node.gate.begin(visit, "train", 1, DIGEST)
        assert stocked.kinds()[-1] == "round.begun"
        with pytest.raises(VhtError) as caught:
            node.gate.begin(visit, "train", 1, DIGEST)
        assert caught.value.code == "VHT-REFUSED-REPLAY"
        assert audited(node, visit) == cost(("train", 1))
        node.gate.begin(visit, "train", 2, DIGEST)
        node.gate.release(visit, "train", 2, DIGEST)
        node.visits.end(visit, "closed", code=None, reason="done")
        assert audited(node, visit) == cost(("train", 1), ("train", 2))
        assert node.overview.budget()["datasets"][DATASET]["reserved"] == pytest.approx(NOTHING)


def test_a_round_whose_log_head_could_not_be_kept_is_spent_before_the_next_step(stocked: Hospital) -> None:
    with stocked.open() as node:
        visit = ready(node, stocked)

        def lost(_: TreeHead) -> None:  # the connection, between the entry and the update of the head
            raise UnavailableError("lost", code="VHT-UNAVAILABLE-DATABASE")

        keep, node.evidence.on_head = node.evidence.on_head, lost
        with unavailable():
            node.gate.begin(visit, "train", 1, DIGEST)
        node.evidence.on_head = keep
        assert stocked.kinds()[-1] == "round.begun"
        node.gate.begin(visit, "train", 2, DIGEST)
        node.visits.end(visit, "closed", code=None, reason="done")
        assert audited(node, visit) == cost(("train", 1), ("train", 2))


def test_the_end_right_after_a_failed_round_accounts_for_it(stocked: Hospital) -> None:
    with stocked.open() as node:
        visit = ready(node, stocked)
        with full_disk(), unavailable():
            node.gate.begin(visit, "train", 1, DIGEST)
        node.visits.end(visit, "closed", code=None, reason="done")
        assert audited(node, visit) == cost(("train", 1))
    with stocked.open() as node:
        assert audited(node, visit) == cost(("train", 1))


def test_while_the_disk_stays_full_nothing_more_is_logged_and_nothing_happens(stocked: Hospital) -> None:
    with stocked.open() as node:
        visit = ready(node, stocked)
        with full_disk():
            with unavailable():
                node.gate.begin(visit, "train", 1, DIGEST)
            logged = stocked.kinds()
            with unavailable():
                node.gate.begin(visit, "train", 2, DIGEST)
            with unavailable():
                node.visits.end(visit, "closed", code=None, reason="done")
            with unavailable():
                node.releases.acknowledge(node.visits.get(visit), "component", DIGEST)
            with unavailable():
                node.opt_out("p1")
            assert stocked.kinds() == logged
        with pytest.raises(VhtError, match="closed"):  # it was asked for, and is not entered
            node.gate.begin(visit, "train", 2, DIGEST)
        assert node.visits.get(visit).state == "ready"
        node.expiry.sweep()
        assert node.visits.get(visit).state == "closed"
        assert audited(node, visit) == cost(("train", 1))


def test_a_release_whose_commit_failed_has_left_and_no_other_output_may(stocked: Hospital) -> None:
    with stocked.open() as node:
        visit = ready(node, stocked)
        node.gate.begin(visit, "train", 1, DIGEST)
        with full_disk(), unavailable():
            node.gate.release(visit, "train", 1, DIGEST, 17)
        with pytest.raises(VhtError) as caught:
            node.gate.release(visit, "train", 1, "cd" * 32, 17)
        assert caught.value.code == "VHT-EGRESS-SECOND"
        node.gate.release(visit, "train", 1, DIGEST, 17)
        node.visits.end(visit, "closed", code=None, reason="done")
        assert stocked.kinds().count("round.released") == 1
        assert audited(node, visit) == cost(("train", 1))


def test_an_approval_whose_commit_failed_reserves_once_and_the_visit_is_prepared(stocked: Hospital) -> None:
    with stocked.open() as node:
        visit = ask(node, stocked).id
        with full_disk(), unavailable():
            node.visits.approve(visit, ADA)
        assert stocked.kinds()[-2:] == ["visit.approved", "budget.reserved"]
        node.visits.approve(visit, Actor("Dr Bo", "approver", "account"))
        await_that(lambda: node.visits.get(visit).state == "ready")
        assert node.visits.get(visit).decided_by == "Dr Ada"
        node.gate.begin(visit, "train", 1, DIGEST)
        node.visits.end(visit, "closed", code=None, reason="done")
        assert stocked.kinds().count("budget.reserved") == 1
        assert audited(node, visit) == cost(("train", 1))


def test_an_approval_whose_commit_failed_can_be_declined_no_more_but_stopped(stocked: Hospital) -> None:
    with stocked.open() as node:
        visit = ask(node, stocked).id
        with full_disk(), unavailable():
            node.visits.approve(visit, ADA)
        with pytest.raises(VhtError) as caught:
            node.visits.reject(visit, ADA, "no")
        assert caught.value.code == "VHT-REFUSED-STATE"
        node.visits.stop(visit, ADA)
        assert audited(node, visit) == NOTHING
        assert record(node, visit).closed is not None


def test_an_end_whose_commit_failed_is_logged_once_and_its_enclave_goes(stocked: Hospital) -> None:
    with stocked.open() as node:
        visit = ready(node, stocked)
        node.gate.begin(visit, "train", 1, DIGEST)
        with full_disk(), unavailable():
            node.visits.end(visit, "rejected", code="VHT-REFUSED-STOPPED", reason="stopped by Dr Ada", actor=ADA)
        with pytest.raises(VhtError) as caught:
            node.gate.begin(visit, "train", 2, DIGEST)
        assert caught.value.code == "VHT-REFUSED-STOPPED"
        row = node.visits.end(visit, "closed", code=None, reason="done")
        assert (row.state, row.decided_by) == ("rejected", "Dr Ada")
        assert row.receipt
        await_that(lambda: set(stocked.enclaves.stopped) == {visit} and not stocked.cohort_folders())
        assert stocked.kinds().count("visit.closed") == 1
        assert audited(node, visit) == cost(("train", 1))


def test_a_request_whose_commit_failed_can_be_made_again(stocked: Hospital) -> None:
    with stocked.open() as node:
        permit, study = stocked.permit(), stocked.study()
        node.visits.admission.admit(
            permit, study, stocked.user.public.jwk(), stocked.proof()
        )  # the newest status list is known
        with full_disk(), unavailable():
            ask(node, stocked, permit, study)
        visit = ask(node, stocked, permit, study).id
        assert approved(node, visit) == "ready"
        node.visits.end(visit, "closed", code=None, reason="done")
        assert audited(node, visit) == NOTHING


def test_a_query_whose_commit_failed_is_spent_and_not_given_back(stocked: Hospital) -> None:
    with stocked.open() as node:
        with unavailable(), node.queries.spending("count", (event(noise=9.0),), ADA) as query, full_disk():
            query.draw()
        spent = epsilon_by_population([event(noise=9.0)], node.ledger.delta)
        assert node.overview.budget()["datasets"][DATASET]["spent"] == pytest.approx(spent)


def test_an_acknowledgement_whose_commit_failed_is_the_receipt_that_is_given(stocked: Hospital) -> None:
    with stocked.open() as node:
        visit = ready(node, stocked)
        node.gate.begin(visit, "train", 1, DIGEST)
        node.gate.release(visit, "train", 1, DIGEST)
        with full_disk(), unavailable():
            node.releases.acknowledge(node.visits.get(visit), "component", DIGEST)
        receipt = node.releases.acknowledge(node.visits.get(visit), "component", DIGEST)
        assert stocked.kinds().count("release.acknowledged") == 1
        with node.database.read() as session:
            assert session.scalars(select(Acknowledgement.receipt)).all() == [receipt]
        assert len(record(node, visit).acknowledged) == 1


def test_an_opt_out_whose_commit_failed_is_in_force_before_the_next_cohort_is_built(stocked: Hospital) -> None:
    with stocked.open() as node:
        with full_disk(), unavailable():
            node.opt_out("p1")
        ready(node, stocked)
        with node.database.read() as session:
            assert len(session.scalars(select(OptOutRow)).all()) == 1


def test_a_step_that_logged_nothing_and_failed_leaves_the_node_at_work(
    stocked: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed: list[None] = []
    monkeypatch.setattr(LogRecovery, "follow", lambda _: followed.append(None))
    with stocked.open() as node:
        followed.clear()  # once at the start
        with pytest.raises(ZeroDivisionError), node.steps.step():
            _ = 1 / 0
        with pytest.raises(VhtError):
            node.visits.approve("v-unknown", ADA)
        ready(node, stocked)
        assert followed == []
