"""Was the permit good at every round? By its dates, by the issuer's status lists in the bundle, and for what it allows
to be released."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from pathlib import Path

from vht_federate.domain.permit import Permit, StatusList
from vht_federate.errors import VhtError
from vht_federate.evidence.bundle import read_statement_file
from vht_federate.evidence.finding import broken
from vht_federate.evidence.visit_record import VisitRecord
from vht_federate.permits.check import check_job, check_time, read_status
from vht_federate.signing.keys import PublicKey

__all__ = ["SeenStatus", "check_covered", "check_rounds", "read_statuses"]

CLOCKS_DIFFER = timedelta(seconds=5)  # between issuer and node


@dataclass(frozen=True)
class SeenStatus:
    """A verified status list and the file it came in."""

    file: str
    status: StatusList


def read_statuses(folder: Path, issuer: PublicKey) -> tuple[SeenStatus, ...]:
    """All lists of the bundle, oldest first. Raises VerificationError VHT-VERIFY-STATUS."""
    statuses = []
    for path in sorted((folder / "status").glob("*.jwt")):
        file = path.relative_to(folder).as_posix()
        try:
            statuses.append(SeenStatus(file, read_status(read_statement_file(folder, file), issuer)))
        except VhtError as error:
            raise broken(file, error.message, "STATUS") from error
    if not statuses:
        raise broken("status", "holds no status list of the issuer", "STATUS")
    statuses.sort(key=lambda seen_status: (seen_status.status.issued_at, seen_status.status.serial))
    for older, newer in pairwise(statuses):
        if newer.status.serial < older.status.serial:
            raise broken(newer.file, f"has a lower serial than the older {older.file}", "STATUS")
    return tuple(statuses)


def check_rounds(record: VisitRecord, permit: Permit, statuses: tuple[SeenStatus, ...]) -> None:
    """Each round began within the permit's dates and on a list that did not yet revoke it.

    A node may rely on a list until it is stale, so a round that began within one validity after the revocation, on a
    list from before it, is lawful; one that saw the revocation's serial, or began later, is not. Serials of a node
    never fall. Each round's job is one whose outputs the permit allows to be released.
    """
    revocation = _revocation(permit, statuses)
    newest = 0
    for entry, begun in record.begun.values():
        place, at = record.log.place(entry), datetime.fromisoformat(entry.time)
        try:
            check_time(permit, at)
        except VhtError as error:
            raise broken(place, f"began while {error.message}", "STATUS") from error
        try:
            check_job(permit, begun.job)
        except VhtError as error:
            raise broken(place, f"ran {begun.job}, but {error.message} ({error.code})", "RELEASE") from error
        if begun.status_serial < newest:
            raise broken(place, "relied on an older status list than the round before it", "STATUS")
        newest = begun.status_serial
        if revocation is None:
            continue
        first, moment, validity = revocation
        if begun.status_serial >= first.status.serial:
            raise broken(place, f"began on status list {begun.status_serial}, which revokes the permit", "STATUS")
        if at > moment + validity:
            raise broken(place, f"began after the permit was revoked ({first.file})", "STATUS")


def check_covered(record: VisitRecord, statuses: tuple[SeenStatus, ...]) -> None:
    """The bundle's newest list is no older than what the node relied on: a revocation in between cannot be hidden.

    Its serial is at least the highest that any decision used, and it was issued after the last round began.
    Raises VerificationError VHT-VERIFY-STATUS naming the list.
    """
    newest, used = statuses[-1], max(record.serials(), default=0)
    if used > newest.status.serial:
        what = f"has serial {newest.status.serial}; {record.log.file} relied on {used}: the later list was left out"
        raise broken(newest.file, what, "STATUS")
    for entry, _ in record.begun.values():
        if newest.status.issued_at + CLOCKS_DIFFER < datetime.fromisoformat(entry.time):
            what = f"was issued before {record.log.place(entry)} began: a list from after the run was left out"
            raise broken(newest.file, what, "STATUS")


def _revocation(permit: Permit, statuses: tuple[SeenStatus, ...]) -> tuple[SeenStatus, datetime, timedelta] | None:
    for seen_status in statuses:
        moment = seen_status.status.revoked.get(permit.permit_id)
        if moment is not None:
            return seen_status, moment, seen_status.status.valid_until - seen_status.status.issued_at
    return None
