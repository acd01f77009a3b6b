"""The gate of every round: the enclave asks, and nothing is drawn or leaves before the answer is yes.

Order of a spend: the row in an open transaction, the entry ``round.begun`` on disk, the commit, and only then the
answer to the enclave, which draws no noise before. Where the process dies or the commit fails after the entry, the
round is spent: the row is entered again from the log (``recovery``).
"""

import logging
import re
import threading
from collections import Counter
from collections.abc import Callable
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.orm import Session

from connector.governance.ledger import dumped
from connector.governance.logged_transactions import Step
from connector.governance.visits import OPEN, Visits, request_of
from connector.store.models import Draw, VisitRow
from vht_federate.domain.budget import PrivacyEvent
from vht_federate.domain.permit import StatusList
from vht_federate.errors import (
    EgressError,
    RefusedError,
    RevokedError,
    UnavailableError,
    VhtError,
    error_from_envelope,
)
from vht_federate.evidence.events import RoundBegun, RoundRefused, RoundReleased
from vht_federate.permits.check import check_job
from vht_federate.privacy.accounting import epsilon_by_population

__all__ = ["GRACE_S", "VisitGate"]

log = logging.getLogger("vht.node.gate")
GRACE_S = 1.0
LOGGED_REFUSALS = 100  # per visit: a coordinator that keeps asking cannot fill the disk
_JOB = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_MAXIMUM_ROUND = 10**9


class VisitGate:
    """Implements ``connector.enclave.visit.Gate`` over the visits of one node. Safe for threads."""

    def __init__(self, visits: Visits, clock: Callable[[], datetime]) -> None:
        self._visits, self._clock = visits, clock
        self._begun: set[tuple[str, str, int]] = set()
        self._refusals: Counter[str] = Counter()
        self._count = threading.Lock()

    def begin(self, visit: str, job: str, round: int, request_sha256: str) -> None:
        """Judge, draw and log one round. Raises the typed error that refuses it; then nothing was drawn."""
        try:
            row = self._ready(visit)
            events = _planned(row, job, round)
            check_job(self._visits.permit_of(row), job)
            status = self._require_good(row)
            with self._visits.steps.step() as step:
                row = self._ready(visit, step.session)
                self._draw(step, row, job, round, events, request_sha256, status)
        except UnavailableError:
            raise
        except VhtError as error:
            self.refused(visit, job, round, error.code)
            raise
        log.info("round begun", extra={"facts": {"visit": visit, "job": job, "round": round}})

    def release(self, visit: str, job: str, round: int, output_sha256: str, output_bytes: int | None = None) -> None:
        """Log what is about to leave. Raises the typed error that keeps it inside; what was drawn stays spent."""
        try:
            row = self._ready(visit)
            check_job(self._visits.permit_of(row), job)
            status, delta = self._require_good(row), request_of(row).plan.delta

            def price(session: Session) -> dict[str, float]:
                return epsilon_by_population(self._visits.ledger.spent_by(session, visit), delta)

            def spends(session: Session) -> tuple[PrivacyEvent, ...]:
                return self._visits.ledger.spent_by(session, visit)

            with self._visits.steps.step_after(price, spends) as (step, epsilon):
                row = self._ready(visit, step.session)
                self._release(step, row, job, round, output_sha256, output_bytes, status, epsilon)
        except UnavailableError:
            raise
        except VhtError as error:
            self.refused(visit, job, round, error.code)
            raise
        log.info("round released", extra={"facts": {"visit": visit, "job": job, "round": round}})

    def refused(self, visit: str, job: str, round: int, code: str) -> None:
        """Log a refusal. ``job`` and ``round`` are whatever a coordinator sent: only well-formed ones are repeated."""
        with self._count:
            self._refusals[visit] += 1
            number = self._refusals[visit]
        if number > LOGGED_REFUSALS:
            return
        try:
            row = self._visits.get(visit)
        except VhtError:
            return
        refused = RoundRefused(
            job=job if _JOB.fullmatch(job) else None,
            round=round if 0 <= round <= _MAXIMUM_ROUND else None,
            code=code,
            last_logged=number == LOGGED_REFUSALS,
        )
        self._visits.evidence.record(refused, permit_id=row.permit_id, visit=visit)

    # --- parts --------------------------------------------------------------------------------------------------

    def _ready(self, visit_id: str, session: Session | None = None) -> VisitRow:
        row = session.get(VisitRow, visit_id) if session else self._visits.get(visit_id)
        if row is None:
            raise RefusedError("no such visit", code="VHT-REFUSED-VISIT")
        ending = self._visits.endings.of(visit_id)
        if ending is not None and row.state in OPEN:
            raise _not_ready(ending.state, ending.code, ending.reason)
        if row.state != "ready":
            raise _not_ready(row.state, row.code, row.reason)
        return row

    def _require_good(self, row: VisitRow) -> StatusList:
        try:
            return self._visits.admission.status.require_good(self._visits.permit_of(row))
        except RevokedError as error:
            self._visits.revoke(row.id, error, grace_s=GRACE_S)
            raise
        except VhtError as error:
            if error.code == "VHT-PERMIT-EXPIRED":
                self._visits.end(row.id, "failed", code=error.code, reason="the permit expired", grace_s=GRACE_S)
            raise

    def _draw(
        self,
        step: Step,
        row: VisitRow,
        job: str,
        round_: int,
        events: tuple[PrivacyEvent, ...],
        request_sha256: str,
        status: StatusList,
    ) -> None:
        session, call = step.session, (row.id, job, round_)
        if call in self._begun or _drawn(session, *call) is not None:
            raise RefusedError(
                "this round was begun before; each is drawn once", code="VHT-REFUSED-REPLAY", hint="ask for the next"
            )
        self._visits.ledger.draw(
            session,
            Draw(
                visit_id=row.id,
                permit_id=row.permit_id,
                dataset_id=row.dataset_id,
                job=job,
                round=round_,
                events=dumped(events),
                request_sha256=request_sha256,
                drawn_at=self._clock(),
            ),
        )
        self._begun.add(call)
        begun = RoundBegun(
            job=job,
            round=round_,
            request_sha256=request_sha256,
            status_serial=status.serial,
            dataset=row.dataset_id,
            events=events,
        )
        step.record(begun, permit_id=row.permit_id, visit=row.id)

    def _release(
        self,
        step: Step,
        row: VisitRow,
        job: str,
        round_: int,
        output_sha256: str,
        output_bytes: int | None,
        status: StatusList,
        epsilon: dict[str, float],
    ) -> None:
        session = step.session
        draw = _drawn(session, row.id, job, round_)
        if draw is None:
            raise EgressError("an output without a begun round", code="VHT-EGRESS-UNDRAWN")
        if draw.output_sha256 == output_sha256:
            return
        if draw.output_sha256 is not None:
            raise EgressError("another output of this round has left already", code="VHT-EGRESS-SECOND")
        draw.output_sha256, draw.output_bytes, draw.released_at = output_sha256, output_bytes, self._clock()
        session.flush()
        released = RoundReleased(
            job=job,
            round=round_,
            output_sha256=output_sha256,
            status_serial=status.serial,
            epsilon=epsilon,
            delta=request_of(row).plan.delta,
            **({} if output_bytes is None else {"output_bytes": output_bytes}),
        )
        step.record(released, permit_id=row.permit_id, visit=row.id)


def _planned(row: VisitRow, job: str, round_: int) -> tuple[PrivacyEvent, ...]:
    try:
        return request_of(row).plan.events_of(job, round_)
    except KeyError as error:
        raise RefusedError("this call is not in the study's plan", code="VHT-REFUSED-UNPLANNED") from error


def _drawn(session: Session, visit_id: str, job: str, round_: int) -> Draw | None:
    return session.scalars(
        select(Draw).where(Draw.visit_id == visit_id, Draw.job == job, Draw.round == round_)
    ).one_or_none()


def _not_ready(state: str, code: str | None, reason: str) -> VhtError:
    """The reason a visit ended, or is about to, is the reason its next round is refused."""
    if code and state in ("revoked", "rejected", "halted", "failed"):
        return error_from_envelope({"code": code, "message": f"this visit is {state}: {reason}"})
    return RefusedError(f"this visit is {state}, not ready", code="VHT-REFUSED-STATE")
