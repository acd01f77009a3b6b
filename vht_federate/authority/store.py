"""The issuer's register of permits and revocations, in one SQLite file.

The command line writes while the service reads: each call is one transaction on its own connection.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, NullPool, String, create_engine, event, func, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from vht_federate.domain.permit import Permit, StatusList
from vht_federate.errors import InputError

__all__ = ["MOST_LOGS", "Register", "Registered", "public_record"]

MOST_LOGS = 10_000  # nodes whose newest head is kept

_PUBLIC = (
    "permit_id", "hdab", "application_ref", "amends", "issued_at", "not_before", "expires_at", "categories",
    "dataset_ids", "columns", "purposes", "purpose_text", "controller", "processing_environment", "component_digests",
    "epsilon", "delta", "minimum_nodes", "minimum_cohort", "release_types",
)  # fmt: skip


class _Base(DeclarativeBase):
    pass


class _PermitRow(_Base):
    __tablename__ = "permits"
    permit_id: Mapped[str] = mapped_column(String(200), primary_key=True)
    issued_at: Mapped[str]  # RFC 3339, UTC: SQLite keeps no time zones
    claims: Mapped[str]  # JSON
    token: Mapped[str]


class _RevocationRow(_Base):
    __tablename__ = "revocations"
    permit_id: Mapped[str] = mapped_column(ForeignKey("permits.permit_id"), primary_key=True)
    revoked_at: Mapped[str]
    reason: Mapped[str]


class _LogHeadRow(_Base):
    __tablename__ = "log_heads"
    kid: Mapped[str] = mapped_column(String(64), primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    token: Mapped[str]


@dataclass(frozen=True)
class Registered:
    """One permit of the register."""

    permit: Permit
    token: str
    revoked_at: datetime | None
    reason: str

    def state(self, now: datetime) -> str:
        """``granted``, ``revoked`` or ``expired``."""
        if self.revoked_at is not None and self.revoked_at <= now:
            return "revoked"
        return "expired" if now >= self.permit.expires_at else "granted"


def public_record(item: Registered, now: datetime) -> dict[str, Any]:
    """What the public register says of one permit: never a key."""
    claims = item.permit.claims()
    users = [{"name": user.name, "kind": user.kind.value} for user in item.permit.data_users]
    return {
        **{name: claims[name] for name in _PUBLIC},
        "data_users": users,
        "state": item.state(now),
        "revoked_at": item.revoked_at.isoformat() if item.revoked_at else None,
    }


class Register:
    """The register in ``path``; made where it is absent."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._engine = create_engine(f"sqlite:///{path}", poolclass=NullPool, connect_args={"timeout": 30})
        event.listen(self._engine, "connect", _prepare)
        _Base.metadata.create_all(self._engine)

    @contextmanager
    def _session(self) -> Iterator[Session]:
        with Session(self._engine) as session, session.begin():
            yield session

    def add(self, permit: Permit, token: str) -> None:
        with self._session() as session:
            session.add(
                _PermitRow(
                    permit_id=permit.permit_id,
                    issued_at=permit.issued_at.isoformat(),
                    claims=json.dumps(permit.claims()),
                    token=token,
                )
            )

    def revoke(self, permit_id: str, now: datetime, reason: str = "") -> datetime:
        """Revoke from ``now`` on; a permit that is revoked already keeps its first moment, which is returned.

        Raises InputError VHT-INPUT-PERMIT for a permit that was not issued here.
        """
        with self._session() as session:
            if session.get(_PermitRow, permit_id) is None:
                raise InputError(
                    f"permit {permit_id} was not issued here",
                    code="VHT-INPUT-PERMIT",
                    hint="'vht permit list --state DIR' shows those that were",
                )
            row = session.get(_RevocationRow, permit_id)
            if row is None:
                row = _RevocationRow(permit_id=permit_id, revoked_at=now.isoformat(), reason=reason)
                session.add(row)
            return datetime.fromisoformat(row.revoked_at)

    def newest_head(self, kid: str) -> str | None:
        """The newest head of the evidence log that key ``kid`` signs, as it was kept here."""
        with self._session() as session:
            row = session.get(_LogHeadRow, kid)
            return row.token if row is not None else None

    def keep_head(self, kid: str, size: int, token: str) -> None:
        """Keep a head where it is the newest of its key. Beyond ``MOST_LOGS`` keys, no new one is taken: whoever floods
        the table pushes nobody out of it."""
        with self._session() as session:
            kept = session.scalar(select(_LogHeadRow.size).where(_LogHeadRow.kid == kid))
            if kept is not None and size <= kept:
                return
            if kept is None and (session.scalar(select(func.count()).select_from(_LogHeadRow)) or 0) >= MOST_LOGS:
                return
            row = insert(_LogHeadRow).values(kid=kid, size=size, token=token)  # of two at once, the newest stays
            session.execute(
                row.on_conflict_do_update(
                    index_elements=["kid"], set_={"size": size, "token": token}, where=_LogHeadRow.size < size
                )
            )

    def permits(self) -> list[Registered]:
        """All permits, oldest first."""
        query = (
            select(_PermitRow, _RevocationRow)
            .outerjoin(_RevocationRow, _RevocationRow.permit_id == _PermitRow.permit_id)
            .order_by(_PermitRow.issued_at, _PermitRow.permit_id)
        )
        with self._session() as session:
            return [_registered(permit, revocation) for permit, revocation in session.execute(query)]

    def status_list(self, hdab: str, now: datetime, validity_s: float) -> StatusList:
        """What the service signs: all revocations, under a serial that grows with each."""
        with self._session() as session:
            serial = session.scalar(select(func.count()).select_from(_RevocationRow)) or 0
            rows = session.scalars(select(_RevocationRow)).all()
            revoked = {row.permit_id: datetime.fromisoformat(row.revoked_at) for row in rows}
        valid_until = now + timedelta(seconds=validity_s)
        return StatusList(hdab=hdab, issued_at=now, valid_until=valid_until, serial=serial, revoked=revoked)


def _registered(permit: _PermitRow, revocation: _RevocationRow | None) -> Registered:
    return Registered(
        permit=Permit.from_claims(json.loads(permit.claims)),
        token=permit.token,
        revoked_at=datetime.fromisoformat(revocation.revoked_at) if revocation else None,
        reason=revocation.reason if revocation else "",
    )


def _prepare(connection, _record) -> None:  # type: ignore[no-untyped-def]
    """Writers and readers side by side; foreign keys hold; a commit is on disk."""
    for pragma in ("journal_mode=WAL", "foreign_keys=ON", "synchronous=FULL"):
        connection.execute(f"PRAGMA {pragma}").close()
