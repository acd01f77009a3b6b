"""What one data user asks of a hospital: judged beside the operators' steps, bounded, and logged once."""

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from kit.feasibility_questions import ask as ask_question
from kit.feasibility_questions import asked_of, question
from kit.hospital import PLAN, Hospital, approved, ask, await_that, event
from kit.hostile_table import Answered
from sqlalchemy import text

from connector.governance.ledger import Ledger
from connector.governance.logged_transactions import Steps
from connector.governance.open_requests import OpenRequests
from connector.governance.operator_accounts import Actor
from connector.governance.refusal_quota import LOGGED, RefusalQuota
from connector.listeners.serve import INSIDE, OUTSIDE
from connector.node import Node
from connector.store import Database
from vht_federate.domain.law import ActorKind
from vht_federate.domain.permit import DataUser
from vht_federate.errors import BudgetError, RefusedError, UnavailableError, VhtError
from vht_federate.evidence.entry import TreeHead
from vht_federate.evidence.events import PermitChecked
from vht_federate.evidence.log import EvidenceLog
from vht_federate.privacy.accounting import epsilon_by_population
from vht_federate.signing.keys import SigningKey
from vht_federate.testing import FixedClock

DIGEST = "ab" * 32
ADA = Actor("Dr Ada", "approver", "account")


class SlowAccountant:
    """The node's own accountant, each of whose accounts is finished when ``released`` says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.released = threading.Semaphore(0), threading.Event()
        exact = Ledger.afford

        def slowly(ledger: Ledger, *arguments: Any) -> None:
            self.entered.release()
            assert self.released.wait(300)
            exact(ledger, *arguments)

        monkeypatch.setattr(Ledger, "afford", slowly)


@contextmanager
def beside(work: Any) -> Iterator[list[Any]]:
    """``work`` in a thread; what it gave or raised, once the block ended."""
    results: list[Any] = []

    def run() -> None:
        try:
            results.append(work())
        except VhtError as error:
            results.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    yield results
    thread.join(300)
    assert not thread.is_alive()


def in_another_thread(work: Any) -> Any:
    with beside(work) as results:
        await_that(lambda: bool(results), 60)
    return results[0]


@pytest.mark.parametrize(
    "walled",
    [
        pytest.param(True, marks=pytest.mark.hostile("lock")),
        pytest.param(False, marks=[pytest.mark.hostile(key, control=True) for key in ("lock", "stop")]),
    ],
)
def test_a_stop_does_not_wait_for_the_account_of_anothers_plan(
    walled: bool, hospital: Hospital, monkeypatch: pytest.MonkeyPatch, answered: Answered
) -> None:
    with hospital.open() as node:
        visit = ask(node, hospital).id
        accountant = SlowAccountant(monkeypatch)
        if not walled:  # the control: the account is computed in the step, as any step's work would be

            @contextmanager
            def inside(steps: Steps, price: Any, version: Any) -> Iterator[Any]:
                with steps.step() as step:
                    yield step, price(step.session)

            monkeypatch.setattr(Steps, "step_after", inside)
        with beside(lambda: ask(node, hospital, study=hospital.study(study_id="study-2"))) as asked:
            assert accountant.entered.acquire(timeout=300)
            with beside(lambda: node.visits.stop(visit, ADA)) as stopped:
                if walled:
                    await_that(lambda: bool(stopped), 60)
                    assert stopped[0].code == "VHT-REFUSED-STOPPED"
                    answered("the stop does not wait")
                else:
                    threading.Event().wait(1.0)
                    assert stopped == []
                accountant.released.set()
        assert asked[0].state == "requested"


def test_a_stop_does_not_wait_for_the_account_of_what_was_drawn(
    stocked: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, released = threading.Semaphore(0), threading.Event()

    def slowly(*arguments: Any) -> dict[str, float]:
        entered.release()
        assert released.wait(300)
        return epsilon_by_population(*arguments)

    with stocked.open() as node:
        visit = ask(node, stocked).id
        assert approved(node, visit) == "ready"
        node.gate.begin(visit, "train", 1, DIGEST)
        monkeypatch.setattr("connector.governance.visits.epsilon_by_population", slowly)
        with beside(lambda: node.visits.stop(visit, ADA)) as stopped:
            assert entered.acquire(timeout=300)
            for judged in (node.gate.begin, node.gate.release):
                with pytest.raises(RefusedError) as caught:
                    judged(visit, "train", 2 if judged == node.gate.begin else 1, DIGEST)
                assert caught.value.code == "VHT-REFUSED-STOPPED"
            await_that(lambda: stocked.enclaves.stopped == [visit] and not stocked.cohort_folders(), 60)
            assert in_another_thread(lambda: ask(node, stocked, study=stocked.study(study_id="study-2"))).id
            assert node.visits.get(visit).state == "ready"
            released.set()
        assert (stopped[0].state, stopped[0].code) == ("halted", "VHT-REFUSED-STOPPED")
        assert stocked.kinds().count("round.begun") == 1


def test_a_round_begun_while_another_is_priced_for_its_release_is_in_the_price_and_delays_no_step(
    stocked: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stocked.open() as node:
        visit = ask(node, stocked).id
        assert approved(node, visit) == "ready"
        node.gate.begin(visit, "train", 1, DIGEST)
        priced_in_a_step: list[bool] = []

        def raced(*arguments: Any) -> dict[str, float]:
            priced_in_a_step.append(node.database.written_here is not None)
            if len(priced_in_a_step) == 1:
                node.gate.begin(visit, "train", 2, DIGEST)
            return epsilon_by_population(*arguments)

        monkeypatch.setattr("connector.governance.round_gate.epsilon_by_population", raced)
        node.gate.release(visit, "train", 1, DIGEST)
        assert priced_in_a_step == [False, False]
        drawn = [event for number in (1, 2) for event in PLAN.events_of("train", number)]
        (released,) = _entries_of(stocked, "round.released")
        assert released["epsilon"] == epsilon_by_population(drawn, PLAN.delta)


def test_a_plan_that_is_slow_to_account_for_holds_up_no_other_visit_and_is_left_when_its_own_ends(
    stocked: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, released = threading.Semaphore(0), threading.Event()

    def slowly(*arguments: Any) -> dict[str, float]:
        entered.release()
        assert released.wait(300)
        return epsilon_by_population(*arguments)

    monkeypatch.setattr("connector.governance.cost_foresight.epsilon_by_population", slowly)
    with stocked.open() as node:
        visits = [ask(node, stocked, study=stocked.study(study_id=name)).id for name in ("study-1", "study-2")]
        assert [approved(node, visit) for visit in visits] == ["ready", "ready"]
        assert entered.acquire(timeout=300)
        for visit in visits:
            node.visits.stop(visit, ADA)
        released.set()
        assert node.preparation is not None
        foreseen: Future[None] = node.preparation._foresight._pool.submit(lambda: None)
        foreseen.result(300)  # and with it what was in its queue
        assert not entered.acquire(blocking=False)


@pytest.mark.parametrize(("changes", "outcome"), [(7, None), (1000, "VHT-UNAVAILABLE-LEDGER")])
def test_a_cohort_that_is_read_while_other_runs_spend_is_narrowed_again_and_never_called_unreadable(
    changes: int, outcome: str | None, stocked: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connector.governance.visit_preparation.PAUSE_S", 0.0)
    monkeypatch.setattr("connector.governance.visit_preparation.NARROWINGS", 2)
    placed, interleaved = Ledger.placed, []
    with stocked.open() as node:

        def raced(ledger: Ledger, *arguments: Any) -> Any:
            if len(interleaved) < changes:
                interleaved.append(True)
                with node.queries.spending("count", (event(noise=9.0),), ADA):
                    pass  # reserved and given back
            return placed(ledger, *arguments)

        monkeypatch.setattr(Ledger, "placed", raced)
        visit = ask(node, stocked).id
        assert approved(node, visit) == ("ready" if outcome is None else "failed")
        assert node.visits.get(visit).code == outcome


@pytest.mark.parametrize("walled", [True, False])
def test_what_was_priced_on_an_older_ledger_is_priced_again(
    walled: bool, stocked: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    ceiling = 1.2 * max(epsilon_by_population(PLAN.events(), PLAN.delta).values())  # for one of the two
    permit = stocked.permit(epsilon=ceiling)
    with stocked.open() as node:
        first = ask(node, stocked, permit).id
        second = ask(node, stocked, permit, stocked.study(study_id="study-2")).id
        price, interleaved = Ledger.price, []

        def raced(ledger: Ledger, *arguments: Any) -> dict[str, float]:
            priced = price(ledger, *arguments)
            if not interleaved:  # another approval gets in between the account and the step
                interleaved.append(True)
                assert in_another_thread(lambda: node.visits.approve(second, ADA)).state == "approved"
            return priced

        monkeypatch.setattr(Ledger, "price", raced)
        if not walled:  # the control: nobody looks whether the ledger is still the same
            monkeypatch.setattr(Ledger, "version", lambda *_: "the same")
            assert node.visits.approve(first, ADA).state == "approved"
            return
        with pytest.raises(BudgetError) as caught:
            node.visits.approve(first, ADA)
        assert caught.value.code == "VHT-BUDGET-PERMIT"
        assert node.visits.get(first).state == "requested"


def test_one_data_user_has_two_requests_open_and_others_go_on() -> None:
    open_requests = OpenRequests(each=2, together=3, seconds=7)
    with open_requests.of("a"), open_requests.of("a"):
        with pytest.raises(UnavailableError) as own, open_requests.of("a"):
            pass
        with open_requests.of("b"), pytest.raises(UnavailableError) as all_, open_requests.of("c"):
            pass
        with open_requests.of("c"):
            pass
    for caught in (own, all_):
        assert (caught.value.code, caught.value.headers()) == ("VHT-UNAVAILABLE-BUSY", {"Retry-After": "7"})
    with open_requests.of("a"):
        pass


@pytest.mark.hostile("questions")
def test_more_questions_than_a_data_user_may_have_open_are_refused_at_once(
    stocked: Hospital, answered: Answered
) -> None:
    other = SigningKey.generate()
    users = tuple(
        DataUser(name=name, kind=ActorKind.ACADEMIC, kid=key.public.kid)
        for name, key in (("Institute", stocked.user), ("Other", other))
    )
    permit = stocked.permit(data_users=users)
    with asked_of(stocked) as node:
        answering, released = threading.Semaphore(0), threading.Event()

        def pause(_: float) -> None:
            answering.release()
            assert released.wait(300)

        node.feasibility.pause = pause
        entries = len(stocked.log())
        with beside(lambda: ask_question(node, stocked, permit, title="1")):
            assert answering.acquire(timeout=300)
            with beside(lambda: ask_question(node, stocked, permit, title="2", epsilon=0.2)):
                await_that(lambda: node.feasibility.open_questions._open[stocked.user.public.kid] == 2)
                for _ in range(60):
                    with pytest.raises(UnavailableError) as caught:
                        ask_question(node, stocked, permit, title="3", epsilon=0.1)
                    assert caught.value.code == "VHT-UNAVAILABLE-QUESTION"
                    assert caught.value.retry_after_s
                answered(caught.value.code)
                with beside(lambda: ask_question(node, stocked, permit, key=other, epsilon=0.15)) as others:
                    await_that(lambda: node.feasibility.open_questions._open.total() == 3)
                    released.set()
        assert others[0]["count"] == 40
        refused = [entry for entry in stocked.log()[entries:] if entry["body"].get("outcome") == "refused"]
        assert refused == []


@pytest.mark.hostile("questions", control=True)
def test_control_where_nobody_bounds_them_each_keeps_a_thread(stocked: Hospital) -> None:
    with asked_of(stocked) as node, ExitStack() as asked:
        answering, released = threading.Semaphore(0), threading.Event()

        def pause(_: float) -> None:
            answering.release()
            assert released.wait(300)

        node.feasibility.pause = pause
        node.feasibility.open_questions = OpenRequests(each=1000, together=1000, seconds=1)
        for number in range(10):
            title = str(number)
            asked.enter_context(beside(lambda title=title: ask_question(node, stocked, title=title, epsilon=0.05)))
            await_that(lambda number=number: node.feasibility.open_questions._open.total() == number + 1, 60)
        assert answering.acquire(timeout=60)
        released.set()


def _entries_of(hospital: Hospital, kind: str) -> list[dict[str, Any]]:
    return [entry["body"] for entry in hospital.log() if entry["kind"] == kind]


def _refused(node: Node, hospital: Hospital, signed: str, times: int) -> None:
    permit = hospital.permit()
    for _ in range(times):
        with pytest.raises(BudgetError):
            node.feasibility.answer(permit, signed, hospital.user.public.jwk())


@pytest.mark.hostile("replay")
def test_one_signed_question_sent_300_times_is_logged_once_and_counted(stocked: Hospital, answered: Answered) -> None:
    with stocked.open() as node:
        _refused(node, stocked, question(stocked, epsilon=2.0), 300)
        checked = _entries_of(stocked, "permit.checked")
        assert [entry["code"] for entry in checked] == ["VHT-BUDGET-QUESTION"]
    answered("1 entry, 299 counted")
    counted = _entries_of(stocked, "refusals.counted")
    assert [(entry["refused"], entry["codes"]) for entry in counted] == [(299, {"VHT-BUDGET-QUESTION": 299})]


@pytest.mark.hostile("replay", control=True)
def test_control_a_log_without_that_memory_takes_one_entry_each(
    stocked: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RefusalQuota, "_repeated", lambda *_: False)
    monkeypatch.setattr("connector.governance.refusal_quota.LOGGED", 1000)
    with stocked.open() as node:
        _refused(node, stocked, question(stocked, epsilon=2.0), 80)
        assert len(_entries_of(stocked, "permit.checked")) == 80


def test_new_questions_are_logged_up_to_a_limit_for_each_data_user(stocked: Hospital) -> None:
    with stocked.open() as node:
        for number in range(LOGGED + 10):
            _refused(node, stocked, question(stocked, epsilon=2.0, title=str(number)), 1)
        assert len(_entries_of(stocked, "permit.checked")) == LOGGED
    assert [entry["refused"] for entry in _entries_of(stocked, "refusals.counted")] == [10]


def test_who_counts_a_refusal_does_not_wait_for_who_logs_what_was_counted(tmp_path: Path) -> None:
    key, clock = SigningKey.generate(), FixedClock()
    with EvidenceLog(tmp_path, key, "hospital-1", clock) as evidence:
        quota, logging, released = RefusalQuota(evidence, clock), threading.Event(), threading.Event()
        refused = PermitChecked(permit_id=None, outcome="refused", code="VHT-REFUSED", request_digest="ab" * 32)
        assert [quota.log(refused), quota.log(refused)] == [True, False]

        def waits_for_the_database(_: TreeHead) -> None:
            logging.set()
            assert released.wait(300)

        evidence.on_head = waits_for_the_database
        with beside(lambda: quota.settle(closing=True)):
            assert logging.wait(300)
            with beside(lambda: quota.log(refused)) as counted:
                try:
                    await_that(lambda: counted == [False], 60)
                finally:
                    released.set()
        assert [entry.kind for entry in evidence.entries()] == ["permit.checked", "refusals.counted"]


def test_each_thread_of_both_listeners_has_a_connection_and_some_are_left(tmp_path: Path) -> None:
    with closing(Database.at(tmp_path / "node.sqlite")) as database, ExitStack() as taken:
        for _ in range(OUTSIDE + INSIDE + 20):  # upkeep, preparation, pulls, a conversation with each enclave
            taken.enter_context(database.read()).execute(text("SELECT 1"))


def test_who_finds_all_connections_taken_is_told_to_ask_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for size in ("POOLED", "AT_ONCE"):
        monkeypatch.setattr(f"connector.store.database.{size}", 1)
    with closing(Database.at(tmp_path / "node.sqlite")) as database, database.read():
        database.engine.pool._timeout = 0.0  # type: ignore[attr-defined]
        for transaction in (database.read, database.write):
            with pytest.raises(UnavailableError) as caught, transaction():
                pass
            assert (caught.value.code, caught.value.retry_after_s) == ("VHT-UNAVAILABLE-DATABASE", 15)
