"""The budget ledger on disk: ``privacy.ledger`` and ``privacy.accounts`` over rows of runs and of who was in them.

Three caps bound every run. The *patient's*: what one patient may ever pay at this node, over all permits, counted by
who was in which run. The *permit's*: its ceiling, counted as if one patient had been in all runs under it, which is
what an auditor can recompute who is not told who was in what. The *dataset's*, where the operator sets one: the same
over all permits.

A visit reserves before any value of a patient is read, so at first its reservation counts for everybody. When its
cohort is known it is narrowed to the patients included (``include``), each of whom must afford it; nothing is drawn
before.
What is spent are the rows of ``draws`` and the drawn ``queries``; what is reserved is the plan of each visit whose
reservation is open, less its draws, and each reserved query. Callers hold a writing transaction.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from connector.governance.ledger_rows import ParticipationStore, dumped, ledger_version, loaded, runs_of
from connector.store.models import Draw, QueryRow, Reservation, VisitRow
from vht_federate.domain.budget import PrivacyEvent
from vht_federate.domain.permit import Permit
from vht_federate.domain.study import StudyRequest
from vht_federate.errors import BudgetError
from vht_federate.evidence.events import BudgetReserved
from vht_federate.privacy.accounting import epsilon_by_population
from vht_federate.privacy.accounts import Cap, PatientAccounts, Remaining, Run
from vht_federate.privacy.ledger import Account
from vht_federate.privacy.ledger import Reservation as Held
from vht_federate.privacy.participation import Included, Participation

__all__ = ["Ledger", "dumped", "loaded"]


@dataclass(frozen=True)
class Ledger:
    """The node's caps: ``epsilon_cap`` at ``delta`` for one patient, ``dataset_epsilon_cap`` for all runs together.

    ``patients`` says how many the store holds now, None where that is not known.
    """

    epsilon_cap: float
    delta: float
    dataset_epsilon_cap: float | None = None
    patients: Callable[[], int | None] = lambda: None
    participation: ParticipationStore = field(default_factory=ParticipationStore, compare=False)

    # --- accounts -----------------------------------------------------------------------------------------------

    def dataset_account(self, session: Session, dataset_id: str) -> Account:
        """All runs on a dataset, as if one patient had been in each."""
        return _account(session, self.dataset_epsilon_cap or self.epsilon_cap, self.delta, dataset_id=dataset_id)

    def permit_account(self, session: Session, permit: Permit) -> Account:
        """All runs under a permit, as if one patient had been in each."""
        return _account(session, permit.epsilon, permit.delta, permit_id=permit.permit_id)

    def patient_accounts(self, session: Session) -> PatientAccounts:
        """Every patient who was in any run."""
        return PatientAccounts(self.participation.read(session), runs_of(session))

    def caps(self, permit: Permit | None, dataset_id: str) -> tuple[Cap, ...]:
        """Those that bound a run, each for one patient."""
        caps = [Cap("patient", self.epsilon_cap, self.delta)]
        if self.dataset_epsilon_cap is not None:
            caps.append(Cap("dataset", self.dataset_epsilon_cap, self.delta, dataset=dataset_id))
        if permit is not None:
            caps.append(Cap("permit", permit.epsilon, permit.delta, permit=permit.permit_id))
        return tuple(caps)

    def remaining(self, session: Session, plan: Run, permit: Permit | None) -> dict[str, Remaining]:
        """How many patients remain under each cap, and how many could pay for ``plan``, by the cap's name."""
        accounts = self.patient_accounts(session)
        new = max(0, (self.patients() or 0) - len(accounts.participation))
        return {cap.name: accounts.remaining(cap, plan, untouched=new) for cap in self.caps(permit, plan.dataset)}

    def version(self, session: Session) -> tuple[object, ...]:
        """Changes with whatever may change an answer of this ledger: no row is taken back, and states move on only."""
        return *ledger_version(session), self.patients()

    # --- visits -------------------------------------------------------------------------------------------------

    def afford(self, session: Session, visit_id: str, permit: Permit, request: StudyRequest, dataset_id: str) -> None:
        """Raises BudgetError VHT-BUDGET-PERMIT or VHT-BUDGET-CAP where the plan does not fit; changes nothing.

        Whom the visit will include is not known yet: patients without a history must afford the plan, and as many as
        the permit's smallest cohort must remain who do.
        """
        run = Run(visit_id, dataset_id, permit.permit_id, holds=request.plan.events())
        self._afford_together(session, run, permit)
        accounts = self.patient_accounts(session)
        accounts.require_new(run, self.caps(None, dataset_id))
        patient_count = self.patients()
        if patient_count is None:
            return
        left = accounts.remaining(
            self.caps(None, dataset_id)[0], run, max(0, patient_count - len(accounts.participation))
        )
        if left.able < min(permit.minimum_cohort, left.patients):
            raise BudgetError(
                "fewer patients than the permit's smallest cohort could still pay for this plan under the node's cap "
                f"of epsilon {self.epsilon_cap:g} at delta {self.delta:g}",
                code="VHT-BUDGET-CAP",
                hint="ask for less epsilon, or ask the node's operator to raise the cap",
            )

    def reserve(
        self, session: Session, visit: VisitRow, permit: Permit, request: StudyRequest, now: datetime
    ) -> BudgetReserved:
        """Set the whole plan aside for ``visit``, from everybody. What the evidence log says of it."""
        return self.reserve_priced(
            session, visit, permit, request, now, self.price(session, visit.id, permit, request, visit.dataset_id)
        )

    def price(
        self, session: Session, visit_id: str, permit: Permit, request: StudyRequest, dataset_id: str
    ) -> dict[str, float]:
        """What the plan costs by population, if it fits. Raises as ``afford``; changes nothing."""
        self.afford(session, visit_id, permit, request, dataset_id)
        return epsilon_by_population(request.plan.events(), request.plan.delta)

    def reserve_priced(
        self,
        session: Session,
        visit: VisitRow,
        permit: Permit,
        request: StudyRequest,
        now: datetime,
        epsilon_if_spent: dict[str, float],
    ) -> BudgetReserved:
        """``reserve`` for a plan that was priced while the ledger had the ``version`` that it still has."""
        events = request.plan.events()
        session.add(
            Reservation(
                visit_id=visit.id,
                permit_id=visit.permit_id,
                dataset_id=visit.dataset_id,
                events=dumped(events),
                open=True,
                reserved_at=now,
            )
        )
        session.flush()
        return BudgetReserved(
            dataset=visit.dataset_id,
            events=events,
            delta=request.plan.delta,
            epsilon_if_spent=epsilon_if_spent,
            caps={
                cap.name: {"epsilon": cap.epsilon, "delta": cap.delta} for cap in self.caps(permit, visit.dataset_id)
            },
        )

    def require_included(
        self, session: Session, visit: VisitRow, permit: Permit, request: StudyRequest, included: Included
    ) -> None:
        """Could ``visit`` include these patients now? Raises BudgetError VHT-BUDGET-CAP; changes nothing."""
        run = Run(visit.id, visit.dataset_id, visit.permit_id, holds=request.plan.events())
        self.patient_accounts(session).require(run, included, self.caps(permit, visit.dataset_id))

    def include(self, session: Session, visit: VisitRow, permit: Permit, included: Included) -> None:
        """Narrow what ``visit`` reserved to the patients of its cohort.

        Raises BudgetError VHT-BUDGET-CAP where one of them would pass a cap; then nothing changed.
        """
        self.include_priced(session, self.placed(session, visit, permit, included))

    def placed(self, session: Session, visit: VisitRow, permit: Permit, included: Included) -> Participation:
        """Who took part in what, once ``visit`` includes these. Raises as ``include``; changes nothing."""
        accounts = self.patient_accounts(session)
        run = accounts.runs.get(visit.id)
        if run is None or not run.holds:
            raise _not_held()
        accounts.require(run, included, self.caps(permit, visit.dataset_id))
        return accounts.participation.place(visit.id, included)

    def include_priced(self, session: Session, placed: Participation) -> None:
        """``include`` for what was ``placed`` while the ledger had the ``version`` that it still has."""
        self.participation.write(session, placed)

    def draw(self, session: Session, draw: Draw) -> None:
        """Enter a spend.

        Raises BudgetError VHT-BUDGET-RESERVATION for events that the visit does not hold reserved, or while it has not
        been said whom it includes.
        """
        if draw.visit_id not in self.participation.read(session).placed:
            raise _not_held()
        account = self.dataset_account(session, draw.dataset_id)
        account.draw(draw.visit_id, loaded(draw.events))
        session.add(draw)
        session.flush()

    def spent_by(self, session: Session, visit_id: str) -> tuple[PrivacyEvent, ...]:
        rows = session.scalars(select(Draw).where(Draw.visit_id == visit_id).order_by(Draw.id))
        return tuple(event for row in rows for event in loaded(row.events))

    def close(self, session: Session, visit_id: str, now: datetime) -> None:
        """Give back what the visit did not draw. A visit without a reservation changes nothing."""
        reservation = session.get(Reservation, visit_id)
        if reservation is None or not reservation.open:
            return
        reservation.open, reservation.released_at = False, now
        session.flush()
        if not self.spent_by(session, visit_id):
            self._forget(session, visit_id)

    # --- queries ------------------------------------------------------------------------------------------------

    def reserve_query(
        self,
        session: Session,
        query: Run,
        label: str,
        now: datetime,
        *,
        permit: Permit | None = None,
        included: Included | None = None,
    ) -> None:
        """Set aside what ``query`` holds, for ``included`` or for everybody.

        Raises BudgetError VHT-BUDGET-CAP or VHT-BUDGET-PERMIT; then nothing changed.
        """
        placed = self.afford_query(session, query, permit=permit, included=included)
        self.reserve_query_priced(session, query, label, now, placed)

    def afford_query(
        self, session: Session, query: Run, *, permit: Permit | None = None, included: Included | None = None
    ) -> Participation | None:
        """Who took part in what, once ``query`` includes ``included``. Raises as ``reserve_query``; changes nothing."""
        if session.get(QueryRow, query.name) is not None:
            raise BudgetError("a query of this name reserved before", code="VHT-BUDGET-RESERVED")
        self._afford_together(session, query, permit)
        accounts = self.patient_accounts(session)
        accounts.require(query, included, self.caps(permit, query.dataset))
        return None if included is None else accounts.participation.place(query.name, included)

    def reserve_query_priced(
        self, session: Session, query: Run, label: str, now: datetime, placed: Participation | None
    ) -> None:
        """``reserve_query`` for one afforded while the ledger had the ``version`` that it still has."""
        if placed is not None:
            self.participation.write(session, placed)
        session.add(
            QueryRow(
                id=query.name,
                dataset_id=query.dataset,
                permit_id=query.permit,
                label=label,
                events=dumped(query.holds),
                state="reserved",
                reserved_at=now,
            )
        )
        session.flush()

    def draw_query(self, session: Session, name: str, now: datetime) -> QueryRow:
        """Enter the spend, all of it. Raises BudgetError VHT-BUDGET-RESERVATION for what is not reserved."""
        row = session.get(QueryRow, name)
        if row is None or row.state != "reserved":
            raise _not_held()
        row.state, row.settled_at = "drawn", now
        session.flush()
        return row

    def release_query(self, session: Session, name: str, now: datetime) -> None:
        """Give back what the query did not draw. One that drew, or is unknown, changes nothing."""
        row = session.get(QueryRow, name)
        if row is None or row.state != "reserved":
            return
        row.state, row.settled_at = "released", now
        session.flush()
        self._forget(session, name)

    # --- parts --------------------------------------------------------------------------------------------------

    def _afford_together(self, session: Session, run: Run, permit: Permit | None) -> None:
        """The caps that count all runs as if one patient had been in each."""
        if permit is not None:
            try:
                self.permit_account(session, permit).reserve(run.name, run.holds)
            except BudgetError as error:
                if error.code != "VHT-BUDGET-CAP":
                    raise
                raise BudgetError(
                    f"with what was spent under this permit before, the plan would pass its ceiling of epsilon "
                    f"{permit.epsilon:g} at delta {permit.delta:g}",
                    code="VHT-BUDGET-PERMIT",
                    hint="fewer rounds, more noise, or another permit",
                ) from error
        if self.dataset_epsilon_cap is not None:
            self.dataset_account(session, run.dataset).reserve(run.name, run.holds)

    def _forget(self, session: Session, name: str) -> None:
        """A run that drew nothing leaves no trace in anybody's history."""
        participation = self.participation.read(session)
        if name in participation.placed:
            self.participation.write(session, participation.remove(name))


def _not_held() -> BudgetError:
    return BudgetError(
        "a visit may only draw what it holds reserved, for the patients of its cohort",
        code="VHT-BUDGET-RESERVATION",
        hint="the visit is not prepared, or it is closed",
    )


def _account(session: Session, epsilon: float, delta: float, **scope: str) -> Account:
    runs = runs_of(session, **scope)
    spent = tuple((name, event) for name, run in runs.items() for event in run.drew)
    return Account(epsilon, delta, spent, tuple(Held(name, run.holds) for name, run in runs.items() if run.holds))
