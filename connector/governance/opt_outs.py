"""The right to opt out of secondary use (Article 71): reversible, and effective as of a permit's issue date.

A patient is excluded under a permit when an opt-out was in force at the moment the permit was issued: recorded to
hold from that moment or earlier, and not withdrawn by then. A later opt-out binds later permits; a later withdrawal
opens later permits. What a permit was issued under cannot be taken back: an opt-out may be dated back, which protects
more, a withdrawal never takes effect before it is recorded. Patients are known here by the keyed hash that the intake
uses, never by an identifier. An opt-out under one id of a person holds for the person: whoever reads the store asks
``connector.fhir.persons`` whose id it is, so it does not matter which came first, the opt-out or the link. A withdrawal
ends the opt-out of its id; one under another id of the same person goes on to hold.
"""

from collections.abc import Iterable
from datetime import datetime
from pathlib import Path

from sqlalchemy import or_, select
from sqlalchemy.orm import Session

from connector.fhir.persons import names_patient
from connector.fhir.store import Store
from connector.fhir.subject_keys import ID
from connector.store.models import OptOutRow
from vht_federate.domain.permit import Permit
from vht_federate.domain.references import patient_id_of
from vht_federate.errors import InputError, NotFoundError
from vht_federate.evidence.entry import LogEntry
from vht_federate.evidence.events import OptOutRecorded, OptOutWithdrawn

__all__ = ["excluded_subjects", "opt_out", "opted_out", "patient_named", "require_held", "restore", "withdraw"]


def patient_named(text: str) -> str:
    """The Patient.id that a person wrote: itself, ``Patient/ID``, an absolute URL that ends so, or ``urn:uuid:ID``.

    Read as the intake reads a reference. Raises InputError VHT-INPUT-PATIENT-ID for anything else: recorded as it
    stands it would be nobody's.
    """
    written = text.strip()
    patient_id = written if ID.fullmatch(written) else patient_id_of(written)
    if patient_id is None:
        raise InputError(
            "this names no patient; nothing was changed",
            code="VHT-INPUT-PATIENT-ID",
            hint="a Patient.id of the export (letters, digits, - and ., at most 64), Patient/ID, a URL or urn:uuid:ID",
        )
    return patient_id


def require_held(store_dir: Path, subject: str) -> None:
    """Raises NotFoundError VHT-INPUT-PATIENT: an opt-out under a mistyped id would protect nobody."""
    generation = Store(store_dir).current()
    if generation is None or not (generation.holds_patient(subject) or names_patient(generation, subject)):
        raise NotFoundError(
            "this node holds no patient of that id; nothing was recorded",
            code="VHT-INPUT-PATIENT",
            hint="it is the Patient.id of the export; for a patient whose data are still to come, add --ahead",
        )


def opt_out(session: Session, subject: str, since: datetime, now: datetime) -> bool:
    """Record an opt-out that holds from ``since``. False where one that already holds then is in force."""
    row = _in_force(session, subject)
    if row is not None and row.since <= since:
        return False
    if row is not None:
        row.since = since
    else:
        session.add(OptOutRow(subject=subject, since=since, recorded_at=now))
    session.flush()
    return True


def withdraw(session: Session, subject: str, at: datetime, now: datetime) -> bool:
    """End the opt-out in force at ``at``. False where there was none. Raises InputError VHT-INPUT-OPT-OUT."""
    if at < now:
        raise InputError(
            "a withdrawal does not take effect before it is recorded: permits were issued under the opt-out",
            code="VHT-INPUT-OPT-OUT",
            hint="leave out the time, or name one that lies ahead",
        )
    row = _in_force(session, subject)
    if row is None:
        return False
    if at < row.since:
        raise InputError("an opt-out cannot be withdrawn before it began", code="VHT-INPUT-OPT-OUT")
    row.until = at
    session.flush()
    return True


def restore(session: Session, entries: Iterable[LogEntry]) -> None:
    """Enter what the evidence log says and the database lacks, never less than the database protects."""
    histories: dict[str, list[LogEntry]] = {}
    for entry in entries:
        if entry.kind in (OptOutRecorded.entry_kind, OptOutWithdrawn.entry_kind):
            histories.setdefault(entry.body["subject"], []).append(entry)
    for subject, history in histories.items():
        unknown = session.scalars(select(OptOutRow.id).where(OptOutRow.subject == subject)).first() is None
        for entry in history if unknown else history[-1:]:
            recorded = datetime.fromisoformat(entry.time)
            if entry.kind == OptOutRecorded.entry_kind:
                opt_out(session, subject, datetime.fromisoformat(entry.body["since"]), recorded)
            elif unknown:
                moment = datetime.fromisoformat(entry.body["until"])
                withdraw(session, subject, moment, moment)


def _in_force(session: Session, subject: str) -> OptOutRow | None:
    return session.scalars(select(OptOutRow).where(OptOutRow.subject == subject, OptOutRow.until.is_(None))).first()


def excluded_subjects(session: Session, permit: Permit) -> set[str]:
    """Subjects whose data a visit under ``permit`` must not read (none where Article 71(4) overrides)."""
    if permit.overrides_opt_out:
        return set()
    return opted_out(session, permit.issued_at)


def opted_out(session: Session, at: datetime) -> set[str]:
    """Subjects whose opt-out was in force at ``at``."""
    rows = session.scalars(
        select(OptOutRow.subject).where(OptOutRow.since <= at, or_(OptOutRow.until.is_(None), OptOutRow.until > at))
    )
    return set(rows)
