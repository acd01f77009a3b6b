"""Pseudonyms that hold under one permit only (Article 66): two permits cannot be linked, nothing leads back.

A pseudonym is an HMAC of the store's subject under a random key of the permit. The key is erased when the permit's
retention period ends: its pseudonyms can then be made by nobody, and no second key is ever made for that permit.
"""

import hashlib
import hmac
import secrets
from collections.abc import Callable
from datetime import datetime

from sqlalchemy.orm import Session

from connector.store.models import PseudonymKeyRow
from vht_federate.errors import PermitError

__all__ = ["erase", "permit_key", "pseudonymiser"]


def pseudonymiser(session: Session, permit_id: str, now: datetime) -> Callable[[str], str]:
    """``subject -> pseudonym`` under ``permit_id``. Raises PermitError VHT-PERMIT-ERASED."""
    key = permit_key(session, permit_id, now)
    return lambda subject: hmac.new(key, subject.encode(), hashlib.sha256).hexdigest()


def permit_key(session: Session, permit_id: str, now: datetime) -> bytes:
    """The key of ``permit_id``, made when it is first asked for. Raises PermitError VHT-PERMIT-ERASED."""
    row = session.get(PseudonymKeyRow, permit_id)
    if row is None:
        row = PseudonymKeyRow(permit_id=permit_id, key=secrets.token_bytes(32), created_at=now)
        session.add(row)
        session.flush()
    if row.key is None:
        raise PermitError("the pseudonyms of this permit were erased", code="VHT-PERMIT-ERASED")
    return row.key


def erase(session: Session, permit_id: str, now: datetime) -> None:
    """Forget the key of ``permit_id``, once and for all."""
    row = session.get(PseudonymKeyRow, permit_id)
    if row is None:
        session.add(PseudonymKeyRow(permit_id=permit_id, key=None, created_at=now, erased_at=now))
    elif row.key is not None:
        row.key, row.erased_at = None, now
