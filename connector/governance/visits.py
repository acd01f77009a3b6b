"""The life of a visit: who asked, who decided, how it ended. Every step is in the evidence log before it holds.

    requested -> approved -> ready -> closed
        |            |          |---> revoked     the permit was withdrawn
        |            |----------|---> failed      preparation, permit's end, restart
        |            |----------|---> halted      an operator pressed stop
        |---> rejected                            an operator said no

A step is one writing transaction whose last act before the commit is the log entry: what the log holds and the
database lacks, after a crash or a commit that failed, is entered again by ``recovery``.

An end is a step that waits for the accountant, the disk and the log, and the last may refuse it. What it takes away is
gone before: from the moment it is asked for, no round of the visit begins or is released, and its enclave is told to
end. Both only refuse more than the log says.
"""

import hmac
import logging
import secrets
from collections.abc import Callable
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from connector.governance.ledger import Ledger
from connector.governance.logged_transactions import Step, Steps
from connector.governance.node_secret import NodeSecret
from connector.governance.operator_accounts import Actor
from connector.governance.study_admission import AdmittedStudy, StudyAdmission
from connector.governance.visit_changes import VisitChanges
from connector.governance.visit_endings import Ending, Endings
from connector.governance.visit_foresight import OPERATORS_OWN, Foresight
from connector.store.models import VisitRow
from vht_federate.domain.permit import Permit
from vht_federate.domain.study import StudyRequest
from vht_federate.errors import NotFoundError, RefusedError, RevokedError, UnavailableError, VhtError
from vht_federate.evidence.entry import LogEntry
from vht_federate.evidence.events import (
    Event,
    PermitRevokedSeen,
    VisitApproved,
    VisitClosed,
    VisitRejected,
    VisitRequested,
)
from vht_federate.permits.check import read_permit
from vht_federate.privacy.accounting import epsilon_by_population
from vht_federate.signing.canonical import sha256_hex
from vht_federate.signing.keys import unverified_claims
from vht_federate.signing.possession import PresentedProof

__all__ = ["OPEN", "STOPPED", "Visits", "request_of"]

OPEN = ("requested", "approved", "ready")
STOPPED = "VHT-REFUSED-STOPPED"
WRONG_STATE = "VHT-REFUSED-STATE"
log = logging.getLogger("vht.node.visits")


def request_of(visit: VisitRow) -> StudyRequest:
    """The study request of a visit; its signature was verified when the visit was made."""
    return StudyRequest.from_claims(unverified_claims(visit.request))


class Visits:
    """All visits of one node. Safe for threads: every change is one of the node's ``steps``."""

    def __init__(
        self,
        steps: Steps,
        ledger: Ledger,
        admission: StudyAdmission,
        secret: NodeSecret,
        clock: Callable[[], datetime],
        changes: VisitChanges,
    ) -> None:
        self.steps, self.ledger, self.admission = steps, ledger, admission
        self.database, self.evidence, self.guard = steps.database, steps.evidence, steps.guard
        self._secret, self._clock, self._changes = secret, clock, changes
        self.endings = Endings()
        self.foresee: Callable[[VisitRow], Foresight | None] = lambda _: None  # what the cohort would be, if known

    # --- reading ------------------------------------------------------------------------------------------------

    def get(self, visit_id: str) -> VisitRow:
        """Raises NotFoundError."""
        with self.database.read() as session:
            return _row(session, visit_id)

    def all(self) -> list[VisitRow]:
        """Newest first."""
        with self.database.read() as session:
            return list(session.scalars(select(VisitRow).order_by(VisitRow.created_at.desc())))

    def of_holder(self, visit_id: str, token: str, proof: PresentedProof) -> VisitRow:
        """The visit whose token this is, for whoever holds the key that its study names as the coordinator's.

        A foreign or unknown visit is not found, whichever it is. Raises RefusedError VHT-REFUSED-PROOF for the right
        token without that key. A visit whose study names none, entered by an earlier version, is open to its token.
        """
        expected = self._secret.visit_token(visit_id)
        if not hmac.compare_digest(expected.encode(), token.encode()):
            raise _unknown()
        visit = self.get(visit_id)
        if coordinator := request_of(visit).coordinator:
            self.admission.require_holder(coordinator, proof, token)
        return visit

    def token(self, visit_id: str) -> str:
        return self._secret.visit_token(visit_id)

    def permit_of(self, visit: VisitRow) -> Permit:
        return read_permit(visit.permit, self.admission.issuer)

    # --- steps --------------------------------------------------------------------------------------------------

    def request(
        self,
        permit: str,
        study: str,
        user_key: dict[str, Any],
        retry_key: str | None = None,
        *,
        proof: PresentedProof = PresentedProof(),
    ) -> VisitRow:
        """Judge a study and enter its visit. The same request with the same ``retry_key`` finds the same visit.

        ``proof`` is of the key that the study names as its coordinator's: the signed text alone, which every node that
        was asked holds, opens nothing. Raises what the admission refuses with, RefusedError VHT-REFUSED-STALE, and
        RefusedError VHT-REFUSED-DUPLICATE for a signed request that had a visit here before: it is published with the
        study's evidence, for all to read.
        """
        judged = self.admission.admit(permit, study, user_key, proof)
        key = sha256_hex(retry_key.encode()) if retry_key else None
        self.steps.catch_up()
        with self.database.read() as session:
            previous = _of_request(session, judged)
        if previous is not None:
            return self._repeated(previous, judged, key)
        self.admission.require_fresh(judged)
        visit_id = f"v-{secrets.token_hex(8)}"

        def afford(session: Session) -> None:
            self.admission.afford(session, visit_id, judged)

        with (
            self.admission.open_requests.of(judged.request.user_kid),
            self.steps.step_after(afford, self.ledger.version) as (step, _),
        ):
            previous = _of_request(step.session, judged)
            if previous is not None:
                return self._repeated(previous, judged, key)
            visit = self._entered(step.session, visit_id, judged, permit, study, key)
            step.record(_requested(judged), permit_id=judged.permit.permit_id, visit=visit_id)
            self.admission.accepted(judged, visit_id)
        log.info("visit requested", extra={"facts": {"visit": visit_id, "study": judged.request.study_id}})
        return visit

    def approve(self, visit_id: str, actor: Actor, *, despite_outcome: bool = False) -> VisitRow:
        """Reserve the plan's budget and let the visit be prepared. Approving twice changes nothing.

        Every patient whom the cohort would include must afford the plan now; and unless ``despite_outcome``, the visit
        must be able to learn (``Foresight.require_informative``). Raises BudgetError VHT-BUDGET-CAP where
        one does not, RefusedError VHT-REFUSED-STATE for a visit that ended, and what the admission refuses with.
        """
        visit = self.get(visit_id)
        if visit.state in ("approved", "ready"):
            return visit
        _expect(visit, "requested")
        permit, request = self.permit_of(visit), request_of(visit)
        try:
            self.admission.status.require_good(permit)
            self.admission.require_component(request)
            foreseen = self.foresee(visit)  # reads the store, which takes its time: outside of any step
            if foreseen is not None and not despite_outcome:
                foreseen.require_informative(request.plan, permit.minimum_cohort)

            def price(session: Session) -> dict[str, float]:
                row = _row(session, visit_id)
                if row.state != "requested":
                    return {}  # the step says so
                priced = self.ledger.price(session, visit_id, permit, request, visit.dataset_id)
                if foreseen is not None:
                    self.ledger.require_included(session, row, permit, request, foreseen.included)
                return priced

            with self.steps.step_after(price, self.ledger.version) as (step, epsilon):
                session = step.session
                visit = _row(session, visit_id)
                if visit.state in ("approved", "ready"):
                    return visit
                _expect(visit, "requested")
                reserved = self.ledger.reserve_priced(session, visit, permit, request, self._clock(), epsilon)
                visit.state, visit.decided_by, visit.decided_at = "approved", actor.name, self._clock()
                session.flush()
                _record(step, visit, VisitApproved(**actor.facts(), digest=request.component.digest))
                _record(step, visit, reserved)
        except UnavailableError:
            raise
        except RevokedError as error:
            self.revoke(visit_id, error)
            raise
        except VhtError as error:
            if error.code not in (WRONG_STATE, *OPERATORS_OWN):  # somebody was faster, or it is the operator's to know
                self.admission.refused(error, permit_id=permit.permit_id, visit_id=visit_id)
            raise
        log.info("visit approved", extra={"facts": {"visit": visit_id, "operator": actor.name}})
        self._changes.approved(visit_id)
        return visit

    def ready(self, visit_id: str, isolation: str) -> bool:
        """The enclave stands. False where the visit ended, or is about to: then it must not stay."""
        with self.steps.step() as step:
            visit = _row(step.session, visit_id)
            if visit.state != "approved" or self.endings.of(visit_id) is not None:
                return False
            visit.state, visit.isolation = "ready", isolation
        log.info("visit ready", extra={"facts": {"visit": visit_id, "isolation": isolation}})
        return True

    def reject(self, visit_id: str, actor: Actor, reason: str) -> VisitRow:
        """An operator declines a request. Raises RefusedError VHT-REFUSED-STATE once it was approved, or ended."""
        with self.guard:
            self.steps.catch_up()
            visit = self.get(visit_id)
            _expect(visit, "requested")
            return self.end(visit_id, "rejected", code="VHT-REFUSED-OPERATOR", reason=reason, actor=actor)

    def stop(self, visit_id: str, actor: Actor, reason: str = "") -> VisitRow:
        """Halt at once: the next round is refused and the enclave goes; then what was not drawn is given back.

        Returns once the end is entered with its price, for which the accountant may take seconds. Raises as ``end``.
        ``reason`` is for the coordinator to read. A visit that was not approved yet is rejected.
        """
        words = f"stopped by the operator: {reason}" if reason else "stopped by the operator"
        return self.end(visit_id, "halted", code=STOPPED, reason=words, actor=actor)

    def revoke(self, visit_id: str, error: RevokedError, *, grace_s: float = 0.0) -> VisitRow:
        """The issuer withdrew the permit: log that it was seen, and end the visit."""
        reason, seen = "the permit was revoked", PermitRevokedSeen(code=error.code)
        return self._end(visit_id, Ending("revoked", error.code, reason, seen=seen, grace_s=grace_s))

    def end(
        self,
        visit_id: str,
        state: str,
        *,
        code: str | None,
        reason: str,
        actor: Actor | None = None,
        grace_s: float = 0.0,
    ) -> VisitRow:
        """Bring a visit to its final ``state``. One that ended before stays as it is.

        ``grace_s`` is how long its enclave may still live, so that a refusal in progress reaches the coordinator. Where
        somebody else is about to end the visit, theirs is the end that it comes to. Raises as ``Steps.step`` does, and
        what the log raises that takes no entry: the visit has no enclave then and begins no round, and whoever asks
        again, or the upkeep, brings it to its end.
        """
        return self._end(visit_id, Ending(state, code, reason, actor, grace_s=grace_s))

    def finish_endings(self) -> None:
        """Enter the ends that were asked for and could not be entered. Raises as ``end`` does."""
        if self.evidence.contradiction is None:
            for visit_id, ending in self.endings.left():
                self._end(visit_id, ending)

    # --- parts --------------------------------------------------------------------------------------------------

    def _end(self, visit_id: str, ending: Ending) -> VisitRow:
        visit = self.get(visit_id)
        if visit.state not in OPEN:
            return visit
        with self.endings.asked(visit_id, ending) as ending:
            self._changes.ended(visit_id, ending.grace_s)
            self.steps.catch_up()  # and whatever round is being entered: it is the last
            self._foresee_cost(visit_id)
            visit = self._enter_end(visit_id, ending)
        facts = {"visit": visit_id, "state": visit.state, "code": visit.code}
        log.info("visit ended", extra={"facts": facts})
        return visit

    def _enter_end(self, visit_id: str, ending: Ending) -> VisitRow:
        with self.steps.step() as step:
            session = step.session
            visit = _row(session, visit_id)
            if visit.state not in OPEN:
                return visit
            if ending.seen is not None:
                _record(step, visit, ending.seen)
            waiting, actor = visit.state == "requested", ending.actor
            state = "rejected" if waiting and ending.state == "halted" else ending.state
            unapproved = waiting and state == "rejected"
            visit.state, visit.code, visit.reason, visit.ended_at = state, ending.code, ending.reason, self._clock()
            visit.decided_by = actor.name if actor else visit.decided_by
            self.ledger.close(session, visit_id, self._clock())
            session.flush()
            outcome = {"reason": ending.reason, "state": state, "code": ending.code, **(actor.facts() if actor else {})}
            ended = VisitRejected(**outcome) if unapproved else VisitClosed(**outcome, **self._cost(session, visit))
            entry = _record(step, visit, ended)
            visit.receipt = self.evidence.receipt(entry)
        return visit

    def _cost(self, session: Session, visit: VisitRow) -> dict[str, Any]:
        spent = self.ledger.spent_by(session, visit.id)
        delta = request_of(visit).plan.delta
        return {"spent": spent, "epsilon": epsilon_by_population(spent, delta), "delta": delta}

    def _foresee_cost(self, visit_id: str) -> None:
        """Before the step, so that nothing is computed in it: the accountant remembers."""
        with self.database.read() as session:
            visit = _row(session, visit_id)
            if visit.state in OPEN:
                self._cost(session, visit)

    def _repeated(self, previous: VisitRow, judged: AdmittedStudy, retry_key: str | None) -> VisitRow:
        if previous.state in OPEN and retry_key is not None and previous.retry_key == retry_key:
            return previous
        error = RefusedError(
            "this signed request already had a visit here",
            code="VHT-REFUSED-DUPLICATE",
            hint="while it is open, repeat it with the Idempotency-Key it was first sent with; else sign a new request",
        )
        self.admission.refused(error, permit_id=judged.permit.permit_id, request_digest=judged.request_digest)
        raise error

    def _entered(
        self, session: Session, visit_id: str, judged: AdmittedStudy, permit: str, study: str, key: str | None
    ) -> VisitRow:
        visit = VisitRow(
            id=visit_id,
            study_id=judged.request.study_id,
            permit_id=judged.permit.permit_id,
            dataset_id=judged.dataset_id,
            request_digest=judged.request_digest,
            retry_key=key,
            user_kid=judged.request.user_kid,
            state="requested",
            reason="",
            created_at=self._clock(),
            permit=permit,
            request=study,
        )
        session.add(visit)
        session.flush()
        return visit


def _of_request(session: Session, judged: AdmittedStudy) -> VisitRow | None:
    return session.scalars(select(VisitRow).where(VisitRow.request_digest == judged.request_digest)).first()


def _requested(judged: AdmittedStudy) -> VisitRequested:
    request = judged.request
    return VisitRequested(
        study_id=request.study_id,
        request_digest=judged.request_digest,
        user_kid=request.user_kid,
        component=request.component,
        plan=request.plan,
        coordinator_kid=request.coordinator.kid if request.coordinator else None,
    )


def _record(step: Step, visit: VisitRow, event: Event) -> LogEntry:
    return step.record(event, permit_id=visit.permit_id, visit=visit.id)


def _row(session: Session, visit_id: str) -> VisitRow:
    visit = session.get(VisitRow, visit_id)
    if visit is None:
        raise _unknown()
    return visit


def _unknown() -> NotFoundError:
    return NotFoundError("no such visit")


def _expect(visit: VisitRow, state: str) -> None:
    if visit.state in OPEN:
        if visit.state != state:
            raise RefusedError(f"this visit is {visit.state}, not {state}", code="VHT-REFUSED-STATE")
    else:
        words = f"this visit ended as {visit.state}"
        raise RefusedError(f"{words}: {visit.reason}" if visit.reason else words, code="VHT-REFUSED-STATE")
