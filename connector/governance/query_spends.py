"""Spends outside of visits: a count for a feasibility question, a statistic of the operator's.

    with queries.spending("feasibility", events, actor) as query:  # reserved, or refused
        exact = …                                                 # read data; leaving here gives everything back
        query.draw()                                              # logged, then committed: spent, whatever follows
        return release_gaussian(exact, …)

A query reserves all its events, and draws all of them or none. One that a crash left reserved gives back at the next
start; one whose draw is in the evidence log is spent, whether or not its commit came through (``recovery``).
"""

import logging
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime

from sqlalchemy import select

from connector.governance.ledger import Ledger
from connector.governance.logged_transactions import Steps
from connector.governance.operator_accounts import Actor
from connector.store.models import QueryRow
from vht_federate.domain.budget import PrivacyEvent
from vht_federate.domain.permit import Permit
from vht_federate.errors import InputError
from vht_federate.evidence.events import QueryDrawn
from vht_federate.privacy.accounts import Run
from vht_federate.privacy.participation import Included

__all__ = ["Queries", "Query"]

log = logging.getLogger("vht.node.queries")


class Query:
    """One query that holds its reservation."""

    def __init__(self, run: Run, draw: Callable[[], None]) -> None:
        self.run, self._draw = run, draw

    def draw(self) -> None:
        """Spend everything, once. No noise may be drawn before this returned.

        Raises BudgetError VHT-BUDGET-RESERVATION the second time, UnavailableError where log or database cannot be
        written: it may be spent then.
        """
        self._draw()


class Queries:
    """Queries on the dataset ``dataset_id`` of one node. Safe for threads."""

    def __init__(
        self,
        steps: Steps,
        ledger: Ledger,
        dataset_id: str,
        clock: Callable[[], datetime],
    ) -> None:
        self.steps, self._ledger = steps, ledger
        self._dataset_id, self._clock = dataset_id, clock

    @contextmanager
    def spending(
        self,
        label: str,
        events: tuple[PrivacyEvent, ...],
        actor: Actor,
        *,
        permit: Permit | None = None,
        included: Included | None = None,
    ) -> Iterator[Query]:
        """Reserve ``events`` for ``included`` (None: everybody); give them back at the end unless they were drawn.

        Raises BudgetError VHT-BUDGET-CAP or VHT-BUDGET-PERMIT.
        """
        if not events:
            raise InputError("a query without events costs nothing and releases nothing", code="VHT-INPUT-QUERY")
        name = f"q-{secrets.token_hex(8)}"
        run = Run(name, self._dataset_id, permit.permit_id if permit else None, holds=events)
        with self.steps.step_after(
            lambda session: self._ledger.afford_query(session, run, permit=permit, included=included),
            self._ledger.version,
        ) as (step, placed):
            self._ledger.reserve_query_priced(step.session, run, label, self._clock(), placed)
        try:
            yield Query(run, lambda: self._draw(name, actor))
        finally:
            with self.steps.step() as step:
                self._ledger.release_query(step.session, name, self._clock())

    def release_left(self) -> int:
        """Give back what a crash left reserved; how many queries that were."""
        with self.steps.step() as step:
            left = step.session.scalars(select(QueryRow.id).where(QueryRow.state == "reserved")).all()
            for name in left:
                self._ledger.release_query(step.session, name, self._clock())
        return len(left)

    def _draw(self, name: str, actor: Actor) -> None:
        with self.steps.step() as step:
            row = self._ledger.draw_query(step.session, name, self._clock())
            drawn = QueryDrawn(
                query=name,
                label=row.label,
                dataset=row.dataset_id,
                events=row.events,
                delta=self._ledger.delta,
                **actor.facts(),
            )
            step.record(drawn, permit_id=row.permit_id)
        log.info("query drawn", extra={"facts": {"query": name, "label": row.label}})
