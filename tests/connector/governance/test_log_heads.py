"""A log that was cut, or restored from an older copy, is noticed: by the node's database, and by whoever holds more."""

import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest
from kit.hospital import PLAN, Hospital, approved, ask, await_that
from kit.hostile_table import Answered
from sqlalchemy import text

from connector.governance.operator_accounts import Actor
from connector.governance.permit_status import IssuerService
from connector.listeners.outward import outward_app
from connector.node import Node
from connector.store import Database
from connector.store.models import LogHeadRow
from vht_federate.domain.log_head import read_log_state
from vht_federate.errors import RevokedError, UnavailableError, VerificationError
from vht_federate.evidence.log import EvidenceLog
from vht_federate.signing.keys import SigningKey
from vht_federate.testing import FixedClock
from vht_federate.testing.asgi import AppClient

DIGEST = "ab" * 32
ADA = Actor("Dr Ada", "approver", "account")
LOG_FILES = ("log.jsonl", "heads.jsonl")


@contextmanager
def apart(hospital: Hospital) -> Iterator[Node]:
    """A node whose issuer keeps no heads, as one of an earlier version does not."""
    issuer = IssuerService(hospital.issuer.url, hospital.tls.ca)
    with closing(issuer), Node(hospital.state, status_source=issuer) as node:
        node.start(enclaves=hospital.enclaves)
        yield node


def run(hospital: Hospital, opened: Callable[[Hospital], AbstractContextManager[Node]] = Hospital.open) -> str:
    """A visit from its request to its end; its receipt."""
    with opened(hospital) as node:
        visit = ask(node, hospital)
        assert approved(node, visit.id) == "ready"
        for job, number in PLAN.calls():
            node.gate.begin(visit.id, job, number, DIGEST)
            node.gate.release(visit.id, job, number, DIGEST, 17)
        receipt = node.visits.end(visit.id, "closed", code=None, reason="done").receipt
    assert receipt is not None
    return receipt


def _kept(hospital: Hospital) -> tuple[int, str]:
    database = Database.at(hospital.state / "node.sqlite")
    try:
        with database.read() as session:
            row = session.get(LogHeadRow, 1)
            assert row is not None
            return row.size, row.root
    finally:
        database.close()


def _cut(evidence: Path, entries: int) -> None:
    for name in LOG_FILES:
        lines = (evidence / name).read_bytes().splitlines(keepends=True)
        (evidence / name).write_bytes(b"".join(lines[:entries]))


def _deleted(evidence: Path) -> None:
    for name in LOG_FILES:
        (evidence / name).unlink()


def test_the_database_keeps_the_newest_head(stocked: Hospital) -> None:
    run(stocked)
    with stocked.open(start=False) as node:
        head = node.evidence.head()
    assert head is not None
    assert _kept(stocked) == (head.size, head.root)


@pytest.mark.hostile("cut-log", control=True)
@pytest.mark.hostile("cut-log")
@pytest.mark.parametrize("spoil", [lambda f: _cut(f, 5), lambda f: _cut(f, 1), _deleted])
def test_a_node_whose_log_was_cut_does_not_open_and_says_how_to_restore(
    spoil: Callable[[Path], None], stocked: Hospital, answered: Answered
) -> None:
    run(stocked)
    evidence, kept = stocked.state / "evidence", stocked.root / "kept"
    shutil.copytree(evidence, kept)
    spoil(evidence)
    with EvidenceLog(evidence, SigningKey.read(stocked.state / "evidence.key"), "hospital-1", FixedClock()):
        pass  # the control: the log alone holds, its entries and heads were cut together
    for start in (False, True):
        with pytest.raises(VerificationError) as caught, stocked.open(start=start):
            pass
        assert caught.value.code == "VHT-VERIFY-LOG-BEHIND"
        assert f"at least {_kept(stocked)[0]} entries" in caught.value.hint
    answered(caught.value.code)
    shutil.copytree(kept, evidence, dirs_exist_ok=True)
    with stocked.open():
        pass


def test_a_log_that_another_history_replaced_does_not_open(stocked: Hospital) -> None:
    evidence, kept = stocked.state / "evidence", stocked.root / "kept"
    shutil.copytree(evidence, kept)
    run(stocked)
    for name in LOG_FILES:
        shutil.copy(kept / name, evidence / name)
    with EvidenceLog(evidence, SigningKey.read(stocked.state / "evidence.key"), "hospital-1", FixedClock()) as log:
        for _ in range(60):
            log.append("node.started", {"version": "0"})
    with pytest.raises(VerificationError) as caught, stocked.open():
        pass
    assert caught.value.code == "VHT-VERIFY-LOG-FORKED"


@pytest.mark.parametrize("empty", [True, False])
def test_a_database_without_a_head_takes_it_at_the_first_start(empty: bool, stocked: Hospital) -> None:
    """As a state directory of an earlier version is: the table is new, or there and empty."""
    run(stocked)
    database = Database.at(stocked.state / "node.sqlite")
    with database.write() as session:
        session.execute(text("DELETE FROM log_head" if empty else "DROP TABLE log_head"))
        if not empty:
            session.execute(text("UPDATE alembic_version SET version_num = '0004'"))
    database.close()
    with stocked.open(start=False) as node:
        head = node.evidence.head()
    assert head is not None
    assert _kept(stocked) == (head.size, head.root)
    _cut(stocked.state / "evidence", 5)
    with pytest.raises(VerificationError), stocked.open():
        pass


def test_a_log_that_is_ahead_of_its_database_opens_as_after_a_crash(stocked: Hospital) -> None:
    with stocked.open(start=False) as node:
        node.evidence.on_head = None
        node.evidence.append("node.started", {"version": "0"})
        node.log_heads.settle = lambda: None  # type: ignore[method-assign]
        size = len(node.evidence)
    with stocked.open(start=False) as node:
        assert len(node.evidence) == size


# --- both restored: somebody else knows more ------------------------------------------------------------------------


def _restored(hospital: Hospital) -> str:
    """The whole state directory put back as it was before a visit; the visit's receipt."""
    backup = hospital.root / "backup"
    shutil.copytree(hospital.state, backup)
    receipt = run(hospital)
    shutil.rmtree(hospital.state)
    shutil.copytree(backup, hospital.state)
    return receipt


def _post(node: Node, hospital: Hospital, shown: str | None) -> tuple[int, str]:
    web = AppClient(outward_app(node), raise_app_exceptions=False)
    body = {"permit": hospital.permit(), "study": hospital.study(), "user_key": hospital.user.public.jwk()}
    answer = web.post("/visits", json=body, headers=hospital.headers() | ({"VHT-Log-Head": shown} if shown else {}))
    return answer.status_code, str((answer.json().get("error") or {}).get("code"))


@pytest.mark.hostile("restored")
def test_a_restored_backup_shows_when_a_newer_receipt_is_shown(stocked: Hospital, answered: Answered) -> None:
    receipt = _restored(stocked)
    with apart(stocked) as node:  # log and database agree with each other
        assert _post(node, stocked, receipt) == (422, "VHT-VERIFY-LOG-BEHIND")
        with pytest.raises(VerificationError):
            node.evidence.append("node.started", {"version": "0"})  # nothing more is signed
        assert _post(node, stocked, None)[1] == "VHT-VERIFY-LOG-BEHIND"
        answered("VHT-VERIFY-LOG-BEHIND")
        assert node.visits.all() == []
    with pytest.raises(VerificationError) as caught, stocked.open():
        pass
    assert caught.value.code == "VHT-VERIFY-LOG-BEHIND"


@pytest.mark.hostile("restored", control=True)
def test_without_anybody_who_knows_more_the_restored_node_begins_again_as_if_nothing_was_spent(
    stocked: Hospital,
) -> None:
    _restored(stocked)
    with apart(stocked) as node:
        assert _post(node, stocked, None)[0] == 201


def test_a_restored_backup_that_went_on_shows_when_an_old_receipt_is_shown(stocked: Hospital) -> None:
    receipt = _restored(stocked)
    run(stocked, apart)
    with apart(stocked) as node:
        node.ingest(stocked.root / "fhir", actor=ADA)
        assert _post(node, stocked, receipt) == (422, "VHT-VERIFY-LOG-FORKED")
    with pytest.raises(VerificationError) as caught, stocked.open():
        pass
    assert caught.value.code == "VHT-VERIFY-LOG-FORKED"


@pytest.mark.parametrize(("went_on", "code"), [(0, "VHT-VERIFY-LOG-BEHIND"), (2, "VHT-VERIFY-LOG-FORKED")])
def test_a_restored_backup_shows_at_the_first_decision_for_which_the_issuer_is_asked(
    went_on: int, code: str, stocked: Hospital
) -> None:
    _restored(stocked)
    for _ in range(went_on):
        run(stocked, apart)
    with stocked.open() as node:
        for _ in range(2):
            with pytest.raises(VerificationError) as caught:
                ask(node, stocked)
            assert caught.value.code == code
        assert [visit for visit in node.visits.all() if visit.state == "requested"] == []
    kept = stocked.issuer.register.newest_head(node.key.public.kid)
    with pytest.raises(VerificationError) as closed, stocked.open():
        pass
    assert closed.value.code == code
    assert stocked.issuer.register.newest_head(node.key.public.kid) == kept, "a log that went astray deposits nothing"


def test_a_node_that_went_on_as_it_should_deposits_its_newest_head(stocked: Hospital) -> None:
    run(stocked)
    run(stocked)
    with stocked.open(start=False) as node:
        state = read_log_state(node.key.public, stocked.issuer.register.newest_head(node.key.public.kid))
        assert state is not None
        assert node.evidence.root_at(state.size) == state.root
        assert state.size > len(node.evidence) - 10


def test_a_receipt_of_this_log_and_one_that_this_node_did_not_sign_change_nothing(stocked: Hospital) -> None:
    receipt = run(stocked)
    claims = {"node": "hospital-1", "size": 10**6, "root": DIGEST}
    strange = SigningKey.generate().sign(claims, typ="vht-tree-head+jwt")
    with stocked.open() as node:
        own = node.key.sign(claims, typ="vht-log-export+jwt")  # no head: another statement of this node
        for shown in (receipt, strange, own, "x.y.z"):
            node.log_heads.compare(shown)
        head = node.evidence.head()
        assert head is not None
        node.log_heads.compare(head.token)
        assert _post(node, stocked, receipt)[0] == 201


ENDS: dict[str, Callable[[Node, str], object]] = {
    "stop": lambda node, visit: node.visits.stop(visit, ADA),
    "revocation": lambda node, visit: node.visits.revoke(visit, RevokedError("withdrawn")),
    "expiry": lambda node, visit: node.visits.end(visit, "failed", code="VHT-PERMIT-EXPIRED", reason="it expired"),
}


@pytest.mark.parametrize("ending", ENDS)
def test_a_log_that_takes_nothing_more_keeps_no_enclave_alive(ending: str, stocked: Hospital) -> None:
    with stocked.open() as node:
        visit = ask(node, stocked).id
        assert approved(node, visit) == "ready"
        node.gate.begin(visit, "train", 1, DIGEST)
        node.evidence.contradict(VerificationError("cut", code="VHT-VERIFY-LOG-BEHIND"))
        with pytest.raises(VerificationError) as caught:
            ENDS[ending](node, visit)
        assert caught.value.code == "VHT-VERIFY-LOG-BEHIND"
        await_that(lambda: stocked.enclaves.stopped == [visit] and not stocked.cohort_folders(), 60)
        assert node.visits.get(visit).state == "ready"
        node.visits.finish_endings()  # nothing can be entered, and nothing is tried
        node.evidence.contradiction = None  # as if the log was put back
        node.visits.finish_endings()
        assert node.visits.get(visit).state in ("halted", "revoked", "failed")


def test_what_is_logged_while_another_thread_writes_waits_for_nobody(stocked: Hospital) -> None:
    with stocked.open() as node:
        logged = threading.Thread(target=lambda: node.evidence.append("node.started", {"version": "0"}))
        with node.database.write():
            logged.start()
            logged.join(60)
            assert not logged.is_alive()
        size = len(node.evidence)
    assert _kept(stocked)[0] >= size


def test_a_database_that_fails_beside_a_step_is_no_failure_of_what_was_logged(
    stocked: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stocked.open() as node:
        with monkeypatch.context() as patch:

            def write(_: Database) -> None:
                raise UnavailableError("full")

            patch.setattr(Database, "write", write)
            entry = node.evidence.append("node.started", {"version": "0"})
        assert node.evidence.root_at(entry.index + 1) is not None
        node.evidence.append("node.started", {"version": "0"})
        assert _kept(stocked)[0] == len(node.evidence)
