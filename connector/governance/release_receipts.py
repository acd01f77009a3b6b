"""Receipts for released artefacts: the node says that it knows what was made from its contribution."""

from collections.abc import Callable
from datetime import datetime

from sqlalchemy import select

from connector.governance.visits import Visits
from connector.store.models import Acknowledgement, VisitRow
from vht_federate.errors import EgressError, RefusedError, RevokedError
from vht_federate.evidence.events import ReleaseAcknowledged

__all__ = ["Releases"]

_MAY_ACKNOWLEDGE = ("ready", "closed", "failed")  # a node that lost its enclave still contributed before


class Releases:
    """Acknowledges components, cohorts and metrics under the permit they were made under."""

    def __init__(self, visits: Visits, clock: Callable[[], datetime]) -> None:
        self._visits, self._clock = visits, clock

    def acknowledge(self, visit: VisitRow, kind: str, sha256: str) -> str:
        """The signed receipt; the same for the same artefact.

        Raises EgressError VHT-EGRESS-RELEASE-TYPE for a kind outside the permit, RevokedError or PermitError where the
        permit is no longer good, RefusedError VHT-REFUSED-STATE or the reason a visit was stopped for.
        """
        if visit.state not in _MAY_ACKNOWLEDGE:
            raise RefusedError(
                f"this visit is {visit.state}; nothing is released from it", code=visit.code or "VHT-REFUSED-STATE"
            )
        permit = self._visits.permit_of(visit)
        if kind not in permit.release_types:
            raise EgressError(f"the permit does not allow the release of a {kind}", code="VHT-EGRESS-RELEASE-TYPE")
        try:
            self._visits.admission.status.require_good(permit)
        except RevokedError as error:
            self._visits.revoke(visit.id, error)
            raise
        with self._visits.steps.step() as step:
            session = step.session
            if not self._visits.ledger.spent_by(session, visit.id):
                raise RefusedError("this node contributed nothing to that release", code="VHT-REFUSED-STATE")
            acknowledgement = session.scalars(
                select(Acknowledgement).filter_by(visit_id=visit.id, kind=kind, sha256=sha256)
            ).one_or_none()
            if acknowledgement is not None:
                return acknowledgement.receipt
            acknowledged = ReleaseAcknowledged(kind=kind, artifact_sha256=sha256)
            entry = step.record(acknowledged, permit_id=visit.permit_id, visit=visit.id)
            receipt = self._visits.evidence.receipt(entry)
            session.add(Acknowledgement(visit_id=visit.id, kind=kind, sha256=sha256, receipt=receipt, at=self._clock()))
            return receipt
