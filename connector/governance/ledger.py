"""The budget ledger on disk: ``privacy.ledger`` arithmetic over rows that are only ever added.

Two accounts bound every visit: the dataset's (what one patient may ever pay at this node, over all permits) and the
permit's (its ceiling for one patient at one node). What is spent are the rows of ``draws``; what is reserved is the
plan of each visit whose reservation is open, less its draws. Callers hold a writing transaction.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from connector.store.models import Draw, Reservation, VisitRow
from vht_federate.domain.budget import PrivacyEvent
from vht_federate.domain.permit import Permit
from vht_federate.domain.study import StudyRequest
from vht_federate.errors import BudgetError
from vht_federate.privacy.accounting import epsilon_by_population
from vht_federate.privacy.ledger import Account
from vht_federate.privacy.ledger import Reservation as Held

__all__ = ["Ledger", "dumped", "loaded"]


def dumped(events: Iterable[PrivacyEvent]) -> list[dict[str, Any]]:
    return [event.model_dump(mode="json") for event in events]


def loaded(events: Iterable[Mapping[str, Any]]) -> tuple[PrivacyEvent, ...]:
    return tuple(PrivacyEvent.model_validate(dict(event)) for event in events)


@dataclass(frozen=True)
class Ledger:
    """The node's caps: ``epsilon_cap`` at ``delta`` for one patient of a dataset."""

    epsilon_cap: float
    delta: float

    def dataset_account(self, session: Session, dataset_id: str) -> Account:
        return _account(session, self.epsilon_cap, self.delta, dataset_id=dataset_id)

    def permit_account(self, session: Session, permit: Permit) -> Account:
        return _account(session, permit.epsilon, permit.delta, permit_id=permit.permit_id)

    def afford(self, session: Session, visit_id: str, permit: Permit, request: StudyRequest, dataset_id: str) -> None:
        """Raises BudgetError VHT-BUDGET-PERMIT or VHT-BUDGET-CAP where the plan does not fit; changes nothing."""
        events = request.plan.events()
        try:
            self.permit_account(session, permit).reserve(visit_id, events)
        except BudgetError as error:
            if error.code != "VHT-BUDGET-CAP":
                raise
            raise BudgetError(
                f"with what was spent under this permit before, the plan would pass its ceiling of epsilon "
                f"{permit.epsilon:g} at delta {permit.delta:g}",
                code="VHT-BUDGET-PERMIT",
                hint="fewer rounds, more noise, or another permit",
            ) from error
        self.dataset_account(session, dataset_id).reserve(visit_id, events)

    def reserve(
        self,
        session: Session,
        visit: VisitRow,
        permit: Permit,
        request: StudyRequest,
        now: datetime,
    ) -> dict[str, Any]:
        """Set the whole plan aside for ``visit``. The body of the log entry ``budget.reserved``."""
        self.afford(session, visit.id, permit, request, visit.dataset_id)
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
        return {
            "dataset": visit.dataset_id,
            "events": dumped(events),
            "delta": request.plan.delta,
            "epsilon_if_spent": epsilon_by_population(events, request.plan.delta),
            "caps": {
                "dataset": {"epsilon": self.epsilon_cap, "delta": self.delta},
                "permit": {"epsilon": permit.epsilon, "delta": permit.delta},
            },
        }

    def draw(self, session: Session, draw: Draw) -> None:
        """Enter a spend. Raises BudgetError VHT-BUDGET-RESERVATION for events the visit does not hold reserved."""
        account = self.dataset_account(session, draw.dataset_id)
        account.draw(draw.visit_id, loaded(draw.events))
        session.add(draw)
        session.flush()

    def spent_by(self, session: Session, visit_id: str) -> tuple[PrivacyEvent, ...]:
        rows = session.scalars(select(Draw).where(Draw.visit_id == visit_id).order_by(Draw.id))
        return tuple(event for row in rows for event in loaded(row.events))

    def close(self, session: Session, visit_id: str, now: datetime) -> None:
        """Give back what the visit did not draw. A visit without a reservation changes nothing."""
        held = session.get(Reservation, visit_id)
        if held is not None and held.open:
            held.open, held.released_at = False, now
            session.flush()


def _account(session: Session, epsilon: float, delta: float, **scope: str) -> Account:
    draws = session.scalars(select(Draw).filter_by(**scope).order_by(Draw.id)).all()
    spent = tuple((row.visit_id, event) for row in draws for event in loaded(row.events))
    reservations = tuple(
        Held(row.visit_id, _left(row, spent))
        for row in session.scalars(select(Reservation).filter_by(**scope, open=True).order_by(Reservation.reserved_at))
    )
    return Account(epsilon, delta, spent, reservations)


def _left(row: Reservation, spent: tuple[tuple[str, PrivacyEvent], ...]) -> tuple[PrivacyEvent, ...]:
    """The plan of a visit less its draws, in the plan's order."""
    drawn = Counter(event for owner, event in spent if owner == row.visit_id)
    left = []
    for event in loaded(row.events):
        if drawn[event]:
            drawn[event] -= 1
        else:
            left.append(event)
    return tuple(left)
