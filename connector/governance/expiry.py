"""What ends by itself: visits whose permit ran out or was withdrawn, visits nobody uses, pseudonyms past retention.

Other parts of the node hand in what ends by itself in their care, such as the files of exports.

A round is judged when it begins; this is for the visit whose coordinator never comes back, so that its cohort does
not stay. The issuer's list being out of reach ends nothing: no round begins without it, and it may come back.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import func, select, union
from sqlalchemy.orm import Session

from connector.governance.pseudonyms import erase
from connector.governance.round_gate import GRACE_S
from connector.governance.visits import OPEN, Visits
from connector.store.models import Acknowledgement, Draw, FhirClientRow, PseudonymKeyRow, VisitRow
from vht_federate.domain.permit import Permit
from vht_federate.errors import RevokedError, VhtError
from vht_federate.evidence.events import PseudonymsErased
from vht_federate.permits.check import check_time, read_permit

__all__ = ["EVERY_S", "IDLE", "Expiry", "PeriodicTask"]

log = logging.getLogger("vht.node.upkeep")
EVERY_S = 60.0
IDLE = timedelta(hours=24)  # without a round, an answer or a receipt
UNANSWERED = timedelta(days=30)  # requested, and no operator decided


class Expiry:
    """One look at everything that may have run out, ``further`` included. Doing it twice is fine."""

    def __init__(
        self,
        visits: Visits,
        clock: Callable[[], datetime],
        *,
        idle: timedelta = IDLE,
        unanswered: timedelta = UNANSWERED,
        further: Sequence[Callable[[], None]] = (),
    ) -> None:
        self._visits, self._clock, self._further = visits, clock, further
        self._idle, self._unanswered = idle, unanswered

    def sweep(self) -> None:
        """Each part runs though another failed; what failed is in the node's log."""
        self._guarded(self._visits.steps.catch_up)
        self._guarded(self._visits.finish_endings)
        for visit in self._visits.all():
            if visit.state in OPEN:
                self._guarded(partial(self._end_if_over, visit))
        self._guarded(self._ask_issuer)
        self._guarded(self._erase_pseudonyms)
        self._guarded(self._visits.admission.refusals.settle)
        for part in self._further:
            self._guarded(part)

    @staticmethod
    def _guarded(part: Callable[[], object]) -> None:
        try:
            part()
        except Exception:
            log.exception("a part of the upkeep failed")

    # --- visits -------------------------------------------------------------------------------------------------

    def _end_if_over(self, visit: VisitRow) -> None:
        try:
            check_time(self._visits.permit_of(visit), self._clock())
        except VhtError as error:
            if error.code == "VHT-PERMIT-EXPIRED":
                self._visits.end(visit.id, "failed", code=error.code, reason="the permit expired", grace_s=GRACE_S)
                return
        allowed = self._unanswered if visit.state == "requested" else self._idle
        if self._clock() - self._last_use(visit) >= allowed:
            hours = allowed.total_seconds() / 3600
            reason = f"nothing happened in this visit for {hours:g} hours"
            self._visits.end(visit.id, "failed", code="VHT-UNAVAILABLE-IDLE", reason=reason)

    def _last_use(self, visit: VisitRow) -> datetime:
        with self._visits.database.read() as session:
            begun, released = session.execute(
                select(func.max(Draw.drawn_at), func.max(Draw.released_at)).where(Draw.visit_id == visit.id)
            ).one()
            noted = session.scalar(select(func.max(Acknowledgement.at)).where(Acknowledgement.visit_id == visit.id))
        return max(moment for moment in (visit.created_at, visit.decided_at, begun, released, noted) if moment)

    def _ask_issuer(self) -> None:
        """Revoked permits end their visits. One question for each permit; the first unanswered ends the asking."""
        visits = [visit for visit in self._visits.all() if visit.state in OPEN]
        for token in sorted({visit.permit for visit in visits}):
            try:
                self._visits.admission.status.require_good(read_permit(token, self._visits.admission.issuer))
            except RevokedError as error:
                for visit in visits:
                    if visit.permit == token:
                        self._guarded(partial(self._visits.revoke, visit.id, error, grace_s=GRACE_S))
            except VhtError as error:
                log.warning("a permit's status is unknown", extra={"facts": {"code": error.code}})
                if error.code.startswith("VHT-PERMIT-STATUS"):
                    return

    # --- pseudonyms ---------------------------------------------------------------------------------------------

    def _erase_pseudonyms(self) -> None:
        """The log says it before the key goes: a crash in between erases at the next look."""
        with self._visits.steps.step() as step:
            session = step.session
            permit_ids = session.scalars(
                select(PseudonymKeyRow.permit_id).where(PseudonymKeyRow.key.is_not(None))
            ).all()
            for permit_id in permit_ids:
                until = self._retained_until(session, permit_id)
                if until is None or self._clock() < until:
                    continue
                erase(session, permit_id, self._clock())
                session.flush()
                step.record(PseudonymsErased(permit_id=permit_id, retained_until=until.isoformat()))
                log.info("pseudonyms erased", extra={"facts": {"permit": permit_id}})

    def _retained_until(self, session: Session, permit_id: str) -> datetime | None:
        of_visits = select(VisitRow.permit).where(VisitRow.permit_id == permit_id)
        of_clients = select(FhirClientRow.permit).where(FhirClientRow.permit_id == permit_id)
        tokens = session.scalars(union(of_visits, of_clients))
        permits: list[Permit] = [read_permit(token, self._visits.admission.issuer) for token in tokens]
        ends = [permit.expires_at + timedelta(days=permit.retention_days_after_expiry) for permit in permits]
        return max(ends, default=None)


class PeriodicTask:
    """Calls ``sweep`` every ``every_s`` seconds in a thread of its own, until it is closed."""

    def __init__(self, sweep: Callable[[], None], every_s: float = EVERY_S) -> None:
        self._sweep, self._every_s = sweep, every_s
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vht-upkeep", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            try:
                self._sweep()
            except Exception:
                log.exception("the upkeep failed")

    def close(self) -> None:
        """Returns when a look in progress is over."""
        self._over.set()
        self._thread.join()
