"""Random interleavings of reserve, include, draw, release, crash and restart: no cap passed, no spend lost.

The ledger's own code runs over a database in memory. A crash is a transaction that never commits, before or after its
entry reached the evidence log; a restart forgets everything but the log and the database, then recovers as a node does.
"""

from collections import Counter
from contextlib import suppress
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import cast

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from kit.hypothesis_profiles import examples
from sqlalchemy import StaticPool, create_engine
from sqlalchemy.orm import Session

from connector.governance.ledger import Ledger, dumped
from connector.governance.ledger_rows import runs_of
from connector.governance.recovery import LogRecovery
from connector.governance.visit_changes import VisitChanges
from connector.store import Database
from connector.store.database import _prepare_sqlite
from connector.store.models import Base, Draw, QueryRow, Reservation, VisitRow
from vht_federate.domain.budget import PrivacyEvent, touching
from vht_federate.domain.permit import Permit
from vht_federate.domain.plan import StudyPlan, TrainingPlan
from vht_federate.domain.study import StudyRequest
from vht_federate.errors import BudgetError
from vht_federate.evidence.entry import LogEntry
from vht_federate.evidence.log import EvidenceLog
from vht_federate.privacy.accounting import epsilon
from vht_federate.privacy.accounts import Run
from vht_federate.privacy.participation import Included

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
CAP, CEILING, DELTA = 4.0, 6.0, 1e-5
PATIENTS = range(6)  # odd ones are on the test side


class Killed(Exception):
    pass


def gaussian(noise: float, population: str) -> PrivacyEvent:
    return PrivacyEvent(label="g", population=population, noise_multiplier=noise)


def study(noise: float) -> StudyRequest:
    training = TrainingPlan(rounds=3, local_steps=1, sampling_rate=1.0, clipping_norm=1, noise_multiplier=noise,
                            learning_rate=1, count_noise_multiplier=20.0)  # fmt: skip
    return StudyRequest.model_construct(plan=StudyPlan(delta=DELTA, training=training))


PLANS = [study(2.6), study(5.0)]
PERMITS = [
    Permit.model_construct(permit_id=name, epsilon=CEILING, delta=DELTA, minimum_cohort=1) for name in ("p-1", "p-2")
]
QUERIES = [(gaussian(4.0, "all"),), (gaussian(3.0, "train"),), (gaussian(2.5, "test"), gaussian(12.0, "all"))]
SOME = st.sets(st.sampled_from(list(PATIENTS)), min_size=1)
MANY = st.sampled_from([set(PATIENTS), {0, 2, 4}, {1, 2}])
CALLS = st.sampled_from([3, 3, 2, 1])
DEATH = st.sampled_from([None] * 6 + ["before the log", "after the log"])
SELDOM = st.sampled_from([False, False, True])


def people(numbers: set[int]) -> Included:
    return Included.of([f"{number:016x}" for number in numbers], [number % 2 == 1 for number in numbers])


class MemoryDatabase(Database):
    def __init__(self) -> None:
        super().__init__("sqlite://")
        self.engine.dispose()
        self.engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
        _prepare_sqlite(self.engine)
        Base.metadata.create_all(self.engine)


class Node(RuleBasedStateMachine):
    """``self.paid`` is what each patient truly paid: a dictionary kept beside."""

    def __init__(self) -> None:
        super().__init__()
        self.database, self.ledger = MemoryDatabase(), Ledger(CAP, DELTA)
        self.log: list[LogEntry] = []
        self.paid: dict[int, list[PrivacyEvent]] = {number: [] for number in PATIENTS}
        self.under: dict[str, list[PrivacyEvent]] = {permit.permit_id: [] for permit in PERMITS}
        self.visits: dict[str, tuple[Permit, StudyRequest, set[int], int]] = {}  # open; whom; calls drawn
        self.queries: dict[str, set[int]] = {}  # reserved
        self.count = 0
        self.changed = True  # since the accounts were compared

    def teardown(self) -> None:
        self.database.close()

    # --- visits -------------------------------------------------------------------------------------------------

    @rule(plan=st.sampled_from(PLANS), permit=st.sampled_from(PERMITS))
    def approve(self, plan: StudyRequest, permit: Permit) -> None:
        self._approve(plan, permit)

    @rule(plan=st.sampled_from(PLANS), permit=st.sampled_from(PERMITS), whom=MANY, calls=CALLS, death=DEATH)
    def run(self, plan: StudyRequest, permit: Permit, whom: set[int], calls: int, death: str | None) -> None:
        """A visit as most are: its steps follow each other, until its process dies or it rests."""
        name = self._approve(plan, permit)
        if name in self.visits:
            self._include(name, whom)
        for call in range(1, calls + 1):
            if name in self.visits:
                self._draw(name, death if call == calls else None)

    def _approve(self, plan: StudyRequest, permit: Permit) -> str:
        name = self._name("v")
        with suppress(BudgetError):
            with self.database.write() as session:
                row = VisitRow(id=name, study_id="s", permit_id=permit.permit_id, dataset_id="d", request_digest=name,
                               user_kid="k", state="approved", created_at=NOW, permit="", request="")  # fmt: skip
                session.add(row)
                session.flush()
                self.ledger.reserve(session, row, permit, plan, NOW)
            self.visits[name] = permit, plan, set(), 0
        return name

    @precondition(lambda self: any(not whom for _, _, whom, _ in self.visits.values()))
    @rule(data=st.data(), whom=SOME)
    def include(self, data: st.DataObject, whom: set[int]) -> None:
        self._include(data.draw(st.sampled_from([name for name, visit in self.visits.items() if not visit[2]])), whom)

    def _include(self, name: str, whom: set[int]) -> None:
        permit, plan, _, _ = self.visits[name]
        try:
            with self.database.write() as session:
                self.ledger.include(session, session.get_one(VisitRow, name), permit, people(whom))
            self.visits[name] = permit, plan, whom, 0
        except BudgetError:
            self._close(name)

    @precondition(lambda self: any(calls < 3 for *_, calls in self.visits.values()))
    @rule(data=st.data(), death=DEATH)
    def draw(self, data: st.DataObject, death: str | None) -> None:
        self._draw(data.draw(st.sampled_from([name for name, visit in self.visits.items() if visit[3] < 3])), death)

    def _draw(self, name: str, death: str | None) -> None:
        permit, plan, whom, calls = self.visits[name]
        events = plan.plan.events_of("train", calls + 1)
        body = {"job": "train", "round": calls + 1, "events": dumped(events), "request_sha256": "00", "dataset": "d"}

        def enter(session: Session) -> None:
            self.ledger.draw(
                session,
                Draw(visit_id=name, permit_id=permit.permit_id, dataset_id="d", job="train", round=calls + 1,
                     events=body["events"], request_sha256="00", drawn_at=NOW),
            )  # fmt: skip

        try:
            spent = self._spend(enter, "round.begun", body, permit.permit_id, name, death)
        except BudgetError:
            assert not whom, "a placed visit may draw what it reserved"
            return
        if spent:
            self._pays(whom, events, permit.permit_id)
            if name in self.visits:
                self.visits[name] = permit, plan, whom, calls + 1

    @precondition(lambda self: self.visits)
    @rule(data=st.data(), really=SELDOM)
    def close(self, data: st.DataObject, really: bool) -> None:
        if really:
            self._close(data.draw(st.sampled_from(list(self.visits))))

    def _close(self, name: str) -> None:
        self.changed = True
        with self.database.write() as session:
            self.ledger.close(session, name, NOW)
        del self.visits[name]

    # --- queries ------------------------------------------------------------------------------------------------

    @rule(events=st.sampled_from(QUERIES), whom=SOME, everybody=st.booleans(), permit=st.sampled_from([None, *PERMITS]))
    def ask(self, events: tuple[PrivacyEvent, ...], whom: set[int], everybody: bool, permit: Permit | None) -> None:
        name, included = self._name("q"), None if everybody else people(whom)
        run = Run(name, "d", permit.permit_id if permit else None, holds=events)
        with suppress(BudgetError):
            with self.database.write() as session:
                self.ledger.reserve_query(session, run, "count", NOW, permit=permit, included=included)
            self.queries[name] = set(PATIENTS) if everybody else whom

    @precondition(lambda self: self.queries)
    @rule(data=st.data(), death=DEATH)
    def answer(self, data: st.DataObject, death: str | None) -> None:
        name = data.draw(st.sampled_from(list(self.queries)))
        whom = self.queries[name]
        with self.database.read() as session:
            row = session.get_one(QueryRow, name)
        events = [PrivacyEvent.model_validate(event) for event in row.events]
        body = {"query": name, "label": "count", "dataset": "d", "events": row.events}
        if self._spend(lambda s: self.ledger.draw_query(s, name, NOW), "query.drawn", body, row.permit_id, None, death):
            self._pays(whom, events, row.permit_id)
            self.queries.pop(name, None)

    @precondition(lambda self: self.queries)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(list(self.queries)))
        with self.database.write() as session:
            self.ledger.release_query(session, name, NOW)
        del self.queries[name]

    # --- crashes ------------------------------------------------------------------------------------------------

    @rule(really=SELDOM)
    def kill(self, really: bool) -> None:
        if really:
            self.restart()

    def restart(self) -> None:
        self.changed = True
        self.ledger = Ledger(CAP, DELTA)
        evidence = cast(EvidenceLog, SimpleNamespace(entries=self._entries))
        LogRecovery(self.database, evidence, self.ledger, VisitChanges(), "d").follow()
        with self.database.write() as session:
            for name in list(self.queries):
                self.ledger.release_query(session, name, NOW)
            for row in session.query(Reservation).filter_by(open=True):
                self.ledger.close(session, row.visit_id, NOW)
        self.queries.clear()
        self.visits.clear()

    def _entries(self) -> list[LogEntry]:
        return list(self.log)

    def _spend(self, enter, kind, body, permit, visit, death) -> bool:  # type: ignore[no-untyped-def]
        """As the gate does: row, entry, commit. Did it count?"""
        try:
            with self.database.write() as session:
                enter(session)
                if death == "before the log":
                    raise Killed
                self.log.append(LogEntry(len(self.log), NOW.isoformat(), "n", kind, permit, visit, body, "salt"))
                if death == "after the log":
                    raise Killed
        except Killed:
            self.restart()
            return death == "after the log"
        return True

    # --- what must hold -----------------------------------------------------------------------------------------

    def _pays(
        self, whom: set[int], events: "tuple[PrivacyEvent, ...] | list[PrivacyEvent]", permit: str | None
    ) -> None:
        self.changed = True
        for number in whom:
            self.paid[number].extend(touching(events, "test" if number % 2 else "train"))
        if permit:
            self.under[permit].extend(events)

    def _name(self, kind: str) -> str:
        self.count += 1
        return f"{kind}-{self.count}"

    @precondition(lambda self: self.changed)
    @invariant()
    def nobody_paid_more_than_the_cap(self) -> None:
        assert all(epsilon(events, DELTA) <= CAP + 1e-6 for events in self.paid.values())
        for events in self.under.values():
            assert epsilon(touching(events, "train"), DELTA) <= CEILING + 1e-6

    @precondition(lambda self: self.changed)
    @invariant()
    def the_ledger_knows_every_spend_and_no_other(self) -> None:
        self.changed = False
        with self.database.read() as session:
            participation, runs = self.ledger.participation.read(session), runs_of(session)
        histories = dict(
            zip(
                participation.subjects.tolist(),
                (participation.groups[index].runs for index in participation.group),
                strict=True,
            )
        )
        for number in PATIENTS:
            own_runs = [
                run
                for run in runs.values()
                if run.name not in participation.placed or run.name in histories.get(number, ())
            ]
            drew = touching([event for run in own_runs for event in run.drew], "test" if number % 2 else "train")
            assert Counter(drew) == Counter(self.paid[number])


Node.TestCase.settings = settings(
    max_examples=examples(16, thorough=400), stateful_step_count=40, deadline=None,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
TestInterleavings = Node.TestCase
