"""The ledger's rows: caps by patient, concurrent writers, kill -9 between any two writes. SQLite and PostgreSQL."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from kit.ledger_queries import LEDGER, NOW, gaussian, people, query
from kit.places import TESTS
from sqlalchemy import select

from connector.governance.ledger import Ledger
from connector.governance.ledger_rows import dumped
from connector.store import Database, migrate
from connector.store.models import Base, Draw, QueryRow, Reservation, VisitRow
from vht_federate.errors import BudgetError
from vht_federate.privacy.accounting import epsilon_by_population


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    address = f"sqlite:///{tmp_path}/node.sqlite"
    if request.param == "postgresql":
        address = request.getfixturevalue("postgresql")
    database = Database(address)
    migrate(database)
    yield address
    if request.param == "postgresql":
        with database.write() as session:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(table.delete())
    database.close()


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    database = Database(url)
    yield database
    database.close()


def test_a_query_reserves_draws_or_gives_back(database: Database) -> None:
    with database.write() as session:
        LEDGER.reserve_query(session, query("q-1"), "count", NOW)
        LEDGER.reserve_query(session, query("q-2", gaussian(30)), "count", NOW)
        LEDGER.draw_query(session, "q-1", NOW)
        LEDGER.release_query(session, "q-2", NOW)
        LEDGER.release_query(session, "q-1", NOW)  # drawn: changes nothing
    with database.read() as session:
        account = LEDGER.dataset_account(session, "d")
        assert account.spent == (("q-1", gaussian()),)
        assert account.reservations == ()
    for name in ("q-1", "q-2", "q-3"):
        with pytest.raises(BudgetError) as caught, database.write() as session:
            LEDGER.draw_query(session, name, NOW)
        assert caught.value.code == "VHT-BUDGET-RESERVATION"


def test_a_query_over_everybody_is_refused_when_one_patient_is_exhausted_and_passes_over_the_others(
    database: Database,
) -> None:
    with database.write() as session:
        LEDGER.reserve_query(session, query("q-1"), "mean", NOW, included=people(1, 2))
        LEDGER.draw_query(session, "q-1", NOW)
    for included in (None, people(2, 3)):
        with pytest.raises(BudgetError) as caught, database.write() as session:
            LEDGER.reserve_query(session, query("q-2"), "mean", NOW, included=included)
        assert caught.value.code == "VHT-BUDGET-CAP"
    with database.write() as session:
        LEDGER.reserve_query(session, query("q-2"), "mean", NOW, included=people(3, 4))
        remaining = LEDGER.remaining(session, query("q-3"), None)["patient"]
    assert (remaining.patients, remaining.able) == (4, 0)


def test_patients_of_a_query_that_gave_back_are_as_before(database: Database) -> None:
    with database.write() as session:
        LEDGER.reserve_query(session, query("q-1"), "mean", NOW, included=people(1, 2))
        LEDGER.release_query(session, "q-1", NOW)
    with database.read() as session:
        assert len(LEDGER.participation.read(session)) == 0
        assert len(Ledger(3.0, 1e-5).participation.read(session)) == 0


def test_the_cap_of_a_dataset_counts_all_queries_whoever_was_in_them(database: Database) -> None:
    ledger = Ledger(10.0, 1e-5, dataset_epsilon_cap=3.0)
    with database.write() as session:
        ledger.reserve_query(session, query("q-1"), "mean", NOW, included=people(1, 2))
    with pytest.raises(BudgetError) as caught, database.write() as session:
        ledger.reserve_query(session, query("q-2"), "mean", NOW, included=people(3, 4))
    assert caught.value.code == "VHT-BUDGET-CAP"
    with database.write() as session:
        LEDGER.reserve_query(session, query("q-2"), "mean", NOW, included=people(3, 4))


def test_what_a_rolled_back_transaction_wrote_is_not_remembered(database: Database) -> None:
    def half() -> None:
        with database.write() as session:
            LEDGER.reserve_query(session, query("q-1"), "mean", NOW, included=people(1, 2))
            LEDGER.participation.read(session)
            raise KeyError

    with pytest.raises(KeyError):
        half()
    with database.write() as session:
        LEDGER.reserve_query(session, query("q-1"), "mean", NOW, included=people(3))
    with database.read() as session:
        assert LEDGER.participation.read(session).subjects.tolist() == people(3).subjects.tolist()


def _visit(session: object) -> VisitRow:
    row = VisitRow(id="v-1", study_id="s", permit_id="p", dataset_id="d", request_digest="00", user_kid="k",
                   state="approved", created_at=NOW, permit="", request="")  # fmt: skip
    session.add(row)  # type: ignore[attr-defined]
    session.flush()  # type: ignore[attr-defined]
    return row


def _draw(**changes: object) -> Draw:
    fields = {"visit_id": "v-1", "permit_id": "p", "dataset_id": "d", "job": "train", "round": 1,
              "events": dumped([gaussian()]), "request_sha256": "00", "drawn_at": NOW, **changes}  # fmt: skip
    return Draw(**fields)


def test_a_visit_draws_nothing_before_it_is_known_whom_it_includes(database: Database) -> None:
    with database.write() as session:
        _visit(session)
        events = dumped([gaussian(), gaussian()])
        session.add(
            Reservation(visit_id="v-1", permit_id="p", dataset_id="d", events=events, open=True, reserved_at=NOW)
        )
        session.flush()
        with pytest.raises(BudgetError) as caught:
            LEDGER.draw(session, _draw())
    assert caught.value.code == "VHT-BUDGET-RESERVATION"


def test_a_draw_known_from_the_log_alone_counts_for_everybody(database: Database) -> None:
    with database.write() as session:
        session.add(_draw())
    with database.write() as session, pytest.raises(BudgetError):
        LEDGER.reserve_query(session, query("q-1"), "mean", NOW, included=people(77))


_RACER = """
import os, sys
sys.path.insert(0, {tests!r})
import dp_accounting
from kit.ledger_queries import LEDGER, NOW, gaussian, query
from connector.store import Database
from vht_federate.errors import BudgetError
mine, got = "a" if os.fork() else "b", 0
database = Database({url!r})
for number in range(6):
    try:
        with database.write() as session:
            LEDGER.reserve_query(session, query(f"q-{{mine}}-{{number}}", gaussian(4.0)), "count", NOW)
        with database.write() as session:
            LEDGER.draw_query(session, f"q-{{mine}}-{{number}}", NOW)
        got += 1
    except BudgetError:
        pass
print(got, flush=True)
if mine == "a":
    os.wait()
"""


def _python(script: str) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_two_processes_that_reserve_at_once_never_pass_the_cap_together(url: str, database: Database) -> None:
    tests = str(TESTS)
    racers = _python(_RACER.format(tests=tests, url=url))
    out, errors = racers.communicate(timeout=300)
    assert racers.returncode == 0, errors
    assert len(out.split()) == 2, errors
    with database.read() as session:
        account = LEDGER.dataset_account(session, "d")
        drawn = session.scalars(select(QueryRow).where(QueryRow.state == "drawn")).all()
    assert sum(map(int, out.split())) == len(drawn) == len(account.spent) > 1
    assert max(account.epsilon_spent().values()) <= 3.0 < max(account.cost_if_spent([gaussian(4.0)]).values())


# Forks a process for each point at which it is to die; each works on a copy of the database, and says how far it came.
_DYING = """
import json, os, shutil, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from sqlalchemy import event
from kit.ledger_queries import LEDGER, NOW, gaussian, people, query
from connector.store import Database

def live(folder, at, told):
    database = Database("sqlite:///" + str(folder / "node.sqlite"))
    seen = 0
    @event.listens_for(database.engine, {hook!r})
    def die(*_, **__):
        nonlocal seen
        seen += 1
        if seen == at:
            os.kill(os.getpid(), signal.SIGKILL)
    with database.write() as session:
        LEDGER.reserve_query(session, query("q-2", gaussian(6.0)), "mean", NOW, included=people(1, 2, 3))
    os.write(told, b"reserved ")
    with database.write() as session:
        LEDGER.draw_query(session, "q-2", NOW)
    os.write(told, b"drawn ")
    with database.write() as session:
        LEDGER.release_query(session, "q-2", NOW)
    os.write(told, b"ended")
    database.close()

shutil.copytree(Path({root!r}) / "before", Path({root!r}) / "first")
live(Path({root!r}) / "first", 0, os.open(os.devnull, os.O_WRONLY))  # loads once what each of them would load
for at in range(1, 100):
    folder = Path({root!r}) / str(at)
    shutil.copytree(Path({root!r}) / "before", folder)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            live(folder, at, writing)
        finally:
            os._exit(0)
    os.close(writing)
    told = os.fdopen(reading).read()
    killed = os.waitpid(child, 0)[1] == signal.SIGKILL
    print(json.dumps([str(folder), told.split(), killed]), flush=True)
    if "ended" in told:
        break
"""


@pytest.mark.faults
@pytest.mark.parametrize("hook", ["before_cursor_execute", "commit"])
def test_killed_between_any_two_writes_nothing_is_half_done(hook: str, tmp_path: Path) -> None:
    """What was reported to the outside before the kill is in the database after it, and every value is whole."""
    (tmp_path / "before").mkdir()
    before = Database.at(tmp_path / "before" / "node.sqlite")
    migrate(before)
    with before.write() as session:
        LEDGER.reserve_query(session, query("q-1", gaussian(6.0)), "mean", NOW, included=people(2, 3, 4))
        LEDGER.draw_query(session, "q-1", NOW)
    before.close()
    dying = _python(_DYING.format(tests=str(TESTS), root=str(tmp_path), hook=hook))
    out, errors = dying.communicate(timeout=300)
    assert dying.returncode == 0, errors
    lives = [json.loads(line) for line in out.splitlines()]
    assert [killed for _, _, killed in lives] == [True] * (len(lives) - 1) + [False]
    assert len(lives) > 2
    for folder, reported, _ in lives:
        database = Database.at(Path(folder) / "node.sqlite")
        with database.read() as session:
            ledger = Ledger(3.0, 1e-5)
            participation = ledger.participation.read(session)
            row = session.get(QueryRow, "q-2")
            spent = ledger.dataset_account(session, "d").epsilon_spent()
        database.close()
        state = row.state if row else None
        once, twice = (epsilon_by_population([gaussian(6.0)] * times, 1e-5) for times in (1, 2))
        assert state in {0: (None, "reserved"), 1: ("reserved", "drawn")}.get(len(reported), ("drawn",))
        assert spent == (twice if state == "drawn" else once)
        assert ("q-2" in participation.placed) == (state is not None)
        assert len(participation) == (4 if state else 3)
