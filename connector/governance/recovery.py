"""After a crash, or a commit that failed: the evidence log is what happened, and the database follows it.

Each step writes its log entry just before its commit, so the log may hold one step that the database lacks, never
the other way round. Enter it; where the process died, end every visit whose enclave died with it. Nothing spent is
given back. What the log does not hold in full (a request, an answer to a question, the report of an intake) is not
entered: nobody was told of it, and it can be asked for again.
"""

import logging
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from connector.governance.ledger import Ledger
from connector.governance.opt_outs import restore
from connector.governance.visit_changes import VisitChanges
from connector.governance.visits import OPEN, Visits
from connector.store.database import Database
from connector.store.models import Acknowledgement, Draw, FhirClientRow, QueryRow, Reservation, VisitRow
from vht_federate.evidence.entry import LogEntry
from vht_federate.evidence.events import (
    BudgetReserved,
    FhirClientRevoked,
    PermitRevokedSeen,
    QueryDrawn,
    ReleaseAcknowledged,
    RoundBegun,
    RoundReleased,
    VisitApproved,
    VisitClosed,
    VisitRejected,
)
from vht_federate.evidence.log import EvidenceLog

__all__ = ["RESTARTED", "LogRecovery", "abandon_open_visits"]

log = logging.getLogger("vht.node.recovery")
RESTARTED = "VHT-UNAVAILABLE-RESTART"


@dataclass(frozen=True)
class LogRecovery:
    """What lets the database of one node, which holds the dataset ``dataset_id``, follow its log."""

    database: Database
    evidence: EvidenceLog
    ledger: Ledger
    changes: VisitChanges
    dataset_id: str

    def follow(self) -> int:
        """Enter what the log holds and the database lacks, in one transaction. The number of spends that were entered.

        A visit found approved or ended is then prepared or cleared as after any other approval or end. Nothing else
        may write meanwhile.
        """
        entered = 0
        approvals: dict[str | None, LogEntry] = {}
        approved: list[str] = []
        ended: list[str] = []
        with self.database.write() as session:
            for entry in self.evidence.entries():
                if entry.kind == RoundBegun.entry_kind:
                    entered += _enter_draw(session, entry, self.dataset_id)
                elif entry.kind == QueryDrawn.entry_kind:
                    entered += _enter_query(session, entry)
                elif entry.kind == RoundReleased.entry_kind:
                    _enter_release(session, entry)
                elif entry.kind == VisitApproved.entry_kind:
                    approvals[entry.visit] = entry
                elif entry.kind == BudgetReserved.entry_kind:
                    approved += _enter_approval(session, entry, approvals[entry.visit])
                elif entry.kind in (VisitClosed.entry_kind, VisitRejected.entry_kind):
                    ended += self._enter_end(session, entry)
                elif entry.kind == ReleaseAcknowledged.entry_kind:
                    self._enter_acknowledgement(session, entry)
                elif entry.kind == FhirClientRevoked.entry_kind:
                    _enter_client_revoked(session, entry)
            restore(session, self.evidence.entries())
        if entered:
            log.warning("spends entered from the evidence log", extra={"facts": {"draws": entered}})
        for visit_id in ended:
            self.changes.ended(visit_id)
        for visit_id in approved:
            if visit_id not in ended:
                self.changes.approved(visit_id)
        return entered

    def _enter_end(self, session: Session, entry: LogEntry) -> list[str]:
        visit = session.get(VisitRow, entry.visit)
        if visit is None or visit.state not in OPEN:
            return []
        body: dict[str, Any] = entry.body
        visit.state, visit.code, visit.reason = body["state"], body["code"], body["reason"]
        visit.decided_by = body.get("operator", visit.decided_by)
        visit.ended_at = datetime.fromisoformat(entry.time)
        visit.receipt = self.evidence.receipt(entry)
        self.ledger.close(session, visit.id, visit.ended_at)
        session.flush()
        return [visit.id]

    def _enter_acknowledgement(self, session: Session, entry: LogEntry) -> None:
        body = entry.body
        key_fields = {"visit_id": entry.visit, "kind": body["kind"], "sha256": body["artifact_sha256"]}
        acknowledgement = session.scalars(select(Acknowledgement).filter_by(**key_fields)).first()
        if acknowledgement is not None or session.get(VisitRow, entry.visit) is None:
            return
        receipt = self.evidence.receipt(entry)
        session.add(Acknowledgement(**key_fields, receipt=receipt, at=datetime.fromisoformat(entry.time)))
        session.flush()


def abandon_open_visits(visits: Visits, *, reason: str) -> list[str]:
    """End visits that were approved or ready: their enclaves are gone. Requested ones wait on for an operator."""
    seen_revoked = {entry.visit for entry in visits.evidence.entries() if entry.kind == PermitRevokedSeen.entry_kind}
    approved = {entry.visit for entry in visits.evidence.entries() if entry.kind == VisitApproved.entry_kind}
    ended = []
    for visit in visits.all():
        if visit.state not in OPEN or (visit.state == "requested" and visit.id not in approved | seen_revoked):
            continue
        if visit.id in seen_revoked:
            visits.end(visit.id, "revoked", code="VHT-PERMIT-REVOKED", reason="the permit was revoked")
        else:
            visits.end(visit.id, "failed", code=RESTARTED, reason=reason)
        ended.append(visit.id)
    return ended


def _enter_draw(session: Session, entry: LogEntry, dataset_id: str) -> int:
    body = entry.body
    if _draw(session, entry) is not None:
        return 0
    session.add(
        Draw(
            visit_id=entry.visit,
            permit_id=entry.permit_id,
            dataset_id=body.get("dataset", dataset_id),
            job=body["job"],
            round=body["round"],
            events=body["events"],
            request_sha256=body["request_sha256"],
            drawn_at=datetime.fromisoformat(entry.time),
        )
    )
    session.flush()
    return 1


def _enter_query(session: Session, entry: LogEntry) -> int:
    """Whom a query that the database lacks included is in no log: it counts for everybody."""
    body, time = entry.body, datetime.fromisoformat(entry.time)
    row = session.get(QueryRow, body["query"])
    if row is not None and row.state == "drawn":
        return 0
    if row is None:
        row = QueryRow(
            id=body["query"],
            dataset_id=body["dataset"],
            permit_id=entry.permit_id,
            label=body["label"],
            events=body["events"],
            reserved_at=time,
        )
        session.add(row)
    row.state, row.settled_at = "drawn", time
    session.flush()
    return 1


def _enter_release(session: Session, entry: LogEntry) -> None:
    draw = _draw(session, entry)
    if draw is not None and draw.output_sha256 is None:
        draw.output_sha256 = entry.body["output_sha256"]
        draw.output_bytes = entry.body.get("output_bytes")
        draw.released_at = datetime.fromisoformat(entry.time)
        session.flush()


def _enter_approval(session: Session, entry: LogEntry, approval: LogEntry) -> list[str]:
    """Approval and reservation are one step: where the log holds only the first, its visit never was approved."""
    visit = session.get(VisitRow, entry.visit)
    if visit is None or visit.state != "requested":
        return []
    reserved_at = datetime.fromisoformat(entry.time)
    visit.state, visit.decided_by = "approved", approval.body["operator"]
    visit.decided_at = datetime.fromisoformat(approval.time)
    session.add(
        Reservation(
            visit_id=visit.id,
            permit_id=visit.permit_id,
            dataset_id=entry.body["dataset"],
            events=entry.body["events"],
            open=True,
            reserved_at=reserved_at,
        )
    )
    session.flush()
    return [visit.id]


def _enter_client_revoked(session: Session, entry: LogEntry) -> None:
    client = session.get(FhirClientRow, entry.body["client"])
    if client is not None and client.revoked_at is None:
        client.revoked_at = datetime.fromisoformat(entry.time)
        session.flush()


def _draw(session: Session, entry: LogEntry) -> Draw | None:
    body = entry.body
    return session.scalars(
        select(Draw).where(Draw.visit_id == entry.visit, Draw.job == body["job"], Draw.round == body["round"])
    ).one_or_none()
