"""kill -9 at the worst moments: the ledger never forgets a spend, and the node opens again."""

import signal
import textwrap
import threading
from collections.abc import Iterator

import pytest
from kit.hospital import DATASET, PLAN, Hospital, approved, ask
from kit.killed_scripts import Scripts, scripts

from vht_federate.errors import BudgetError, RefusedError, VhtError
from vht_federate.privacy.accounting import epsilon_by_population

DIGEST = "ab" * 32

# A node in a process of its own, which dies by SIGKILL where a step calls `die()`.
_IMPORTS = """
from kit.hospital import PaperEnclaves
from connector.node import Node
import dp_accounting
"""
_DYING = """
import os, signal
from pathlib import Path
from kit.hospital import PaperEnclaves
from connector.node import Node

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

node = Node(Path({state!r}))
enclaves = PaperEnclaves()
node.start(enclaves=enclaves)
{body}
"""


@pytest.fixture(scope="module")
def dying(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scripts]:
    with scripts(_IMPORTS, tmp_path_factory.mktemp("dying")) as runner:
        yield runner


def _die(dying: Scripts, hospital: Hospital, body: str) -> None:
    """Run ``body`` against the node in a process that kills itself."""
    script = _DYING.format(state=str(hospital.state), body=textwrap.dedent(body))
    assert dying.killed_by(script) == signal.SIGKILL


def _requested(hospital: Hospital) -> str:
    with hospital.open() as node:
        return str(ask(node, hospital).id)


_READY = """
import time
from connector.governance.operator_accounts import Actor
node.visits.approve({visit!r}, Actor("Ada", "approver", "account"))
while node.visits.get({visit!r}).state != "ready":
    time.sleep(0.02)
"""


def _spent(hospital: Hospital) -> tuple[dict[str, float], dict[str, float], str]:
    with hospital.open() as node:
        account = node.overview.budget()["datasets"][DATASET]
        (visit,) = node.visits.all()
        return account["spent"], account["if_spent"], visit.state


@pytest.mark.faults
def test_killed_between_the_log_and_the_commit_the_round_is_spent(stocked: Hospital, dying: Scripts) -> None:
    visit = _requested(stocked)
    _die(
        dying,
        stocked,
        _READY.format(visit=visit)
        + f"""
append = node.evidence.append
def append_and_die(kind, *args, **more):
    entry = append(kind, *args, **more)
    if kind == "round.begun":
        die()
    return entry
node.evidence.append = append_and_die
node.gate.begin({visit!r}, "train", 1, {DIGEST!r})
""",
    )
    spent, if_spent, state = _spent(stocked)
    assert spent == pytest.approx(epsilon_by_population(PLAN.events_of("train", 1), PLAN.delta))
    assert if_spent == pytest.approx(spent)
    assert state == "failed"


@pytest.mark.faults
def test_killed_between_reservation_and_draw_nothing_is_spent_and_the_rest_is_given_back(
    stocked: Hospital, dying: Scripts
) -> None:
    visit = _requested(stocked)
    _die(dying, stocked, _READY.format(visit=visit) + "die()")
    assert stocked.cohort_folders()
    spent, if_spent, state = _spent(stocked)
    assert (spent, if_spent, state) == ({"train": 0.0, "test": 0.0}, {"train": 0.0, "test": 0.0}, "failed")
    assert not stocked.cohort_folders()


@pytest.mark.faults
def test_killed_before_the_log_entry_nothing_happened(stocked: Hospital, dying: Scripts) -> None:
    visit = _requested(stocked)
    _die(
        dying,
        stocked,
        _READY.format(visit=visit)
        + f"""
node.evidence.append = die
node.gate.begin({visit!r}, "train", 1, {DIGEST!r})
""",
    )
    spent, _, state = _spent(stocked)
    assert (spent["train"], state) == (0.0, "failed")
    assert "round.begun" not in stocked.kinds()


@pytest.mark.faults
def test_killed_between_the_last_entry_and_its_commit_a_visit_is_not_closed_twice(
    stocked: Hospital, dying: Scripts
) -> None:
    visit = _requested(stocked)
    _die(
        dying,
        stocked,
        _READY.format(visit=visit)
        + f"""
node.evidence.receipt = die
node.visits.end({visit!r}, "closed", code=None, reason="done")
""",
    )
    with stocked.open() as node:
        row = node.visits.get(visit)
        assert (row.state, row.reason) == ("closed", "done")
        assert row.receipt
    assert stocked.kinds().count("visit.closed") == 1


@pytest.mark.faults
def test_killed_right_after_approval_the_visit_fails_and_its_budget_is_free_again(
    stocked: Hospital, dying: Scripts
) -> None:
    visit = _requested(stocked)
    _die(
        dying,
        stocked,
        f"""
from connector.governance.operator_accounts import Actor
node.changes.approved = die
node.visits.approve({visit!r}, Actor("Ada", "approver", "account"))
""",
    )
    with stocked.open() as node:
        row = node.visits.get(visit)
        assert (row.state, row.code) == ("failed", "VHT-UNAVAILABLE-RESTART")
        second = ask(node, stocked, study=stocked.study(study_id="study-2"))
        assert approved(node, second.id) == "ready"


def test_a_database_that_was_lost_gets_its_spends_back_from_the_log(stocked: Hospital) -> None:
    with stocked.open() as node:
        visit = ask(node, stocked)
        approved(node, visit.id)
        node.gate.begin(visit.id, "train", 1, DIGEST)
    for path in stocked.state.glob("node.sqlite*"):
        path.unlink()
    with stocked.open() as node:
        account = node.overview.budget()["datasets"][DATASET]
        assert account["spent"]["train"] == pytest.approx(
            epsilon_by_population(PLAN.events_of("train", 1), PLAN.delta)["train"]
        )


def test_many_at_once_draw_each_round_once(stocked: Hospital) -> None:
    with stocked.open() as node:
        visit = ask(node, stocked)
        approved(node, visit.id)
        outcomes: list[str] = []

        def race() -> None:
            try:
                node.gate.begin(visit.id, "train", 1, DIGEST)
                outcomes.append("begun")
            except VhtError as error:
                outcomes.append(error.code)

        threads = [threading.Thread(target=race) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(outcomes) == ["VHT-REFUSED-REPLAY"] * 7 + ["begun"]
        spent = node.overview.budget()["datasets"][DATASET]["spent"]
        assert spent == pytest.approx(epsilon_by_population(PLAN.events_of("train", 1), PLAN.delta))


def test_a_log_that_cannot_be_written_lets_nothing_begin(stocked: Hospital) -> None:
    with stocked.open() as node:
        visit = ask(node, stocked)
        approved(node, visit.id)
        append = node.evidence.append

        def full(kind: str, *arguments: object, **more: object) -> None:
            raise OSError(28, "No space left on device")

        node.evidence.append = full  # type: ignore[method-assign,assignment]
        with pytest.raises(OSError, match="No space"):
            node.gate.begin(visit.id, "train", 1, DIGEST)
        node.evidence.append = append  # type: ignore[method-assign]
        assert node.overview.budget()["datasets"][DATASET]["spent"]["train"] == 0
        with pytest.raises((RefusedError, BudgetError)):
            node.gate.begin(visit.id, "train", 1, DIGEST)  # it may have reached the disk: never again
    assert "round.begun" not in stocked.kinds()


def test_two_processes_do_not_share_a_directory(stocked: Hospital) -> None:
    with stocked.open(), pytest.raises(VhtError) as caught, stocked.open():
        pass
    assert caught.value.code == "VHT-UNAVAILABLE-LOG"


def test_a_stopped_node_leaves_neither_sockets_nor_cohorts(stocked: Hospital) -> None:
    with stocked.open() as node:
        visit = ask(node, stocked)
        approved(node, visit.id)
        run_dir = node.run_dir
        assert run_dir.stat().st_mode & 0o777 == 0o700
    assert not run_dir.exists()
    assert not (stocked.state / "run_dir").exists()
    assert not stocked.cohort_folders()
    with stocked.open() as node:
        assert node.visits.get(visit.id).state == "failed"
