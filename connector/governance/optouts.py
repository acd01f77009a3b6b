"""The right to opt out of secondary use (Article 71): reversible, and effective as of a permit's issue date.

A patient is excluded under a permit when an opt-out was in force at the moment the permit was issued: recorded to
hold from that moment or earlier, and not withdrawn by then. A later opt-out binds later permits; a later withdrawal
opens later permits. Patients are known here by the keyed hash that the intake uses, never by an identifier.
"""

from datetime import datetime

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from connector.store.models import OptOutRow
from vht_federate.domain.permit import Permit
from vht_federate.errors import InputError

__all__ = ["excluded_subjects", "opt_out", "withdraw"]


def opt_out(session: Session, subject: str, since: datetime, now: datetime) -> None:
    """Record an opt-out that holds from ``since``. One that already holds then changes nothing."""
    held = session.scalars(select(OptOutRow).where(OptOutRow.subject == subject, OptOutRow.until.is_(None))).first()
    if held is not None:
        held.since = min(held.since, since)
        return
    session.add(OptOutRow(subject=subject, since=since, recorded_at=now))


def withdraw(session: Session, subject: str, at: datetime) -> bool:
    """End the opt-out in force at ``at``. False where there was none."""
    held = session.scalars(select(OptOutRow).where(OptOutRow.subject == subject, OptOutRow.until.is_(None))).first()
    if held is None:
        return False
    if at < held.since:
        raise InputError("an opt-out cannot be withdrawn before it began", code="VHT-INPUT-OPT-OUT")
    held.until = at
    return True


def excluded_subjects(session: Session, permit: Permit) -> set[str]:
    """Subjects whose data a visit under ``permit`` must not read (none where Article 71(4) overrides)."""
    if permit.overrides_opt_out:
        return set()
    issued = permit.issued_at
    rows = session.scalars(
        select(OptOutRow.subject).where(
            OptOutRow.since <= issued, or_(OptOutRow.until.is_(None), OptOutRow.until > issued)
        )
    )
    return set(rows)
