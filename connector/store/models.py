"""Tables of one node. No row holds a clinical value; a patient appears only as a keyed hash, in ``opt_outs`` and (64
bits of it) in ``participation``."""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    DateTime,
    ForeignKey,
    LargeBinary,
    MetaData,
    String,
    Text,
    TypeDecorator,
    UniqueConstraint,
)
from sqlalchemy.engine import Dialect
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

__all__ = [
    "Acknowledgement",
    "Base",
    "Draw",
    "FeasibilityRow",
    "IngestRow",
    "IssuerState",
    "LogHeadRow",
    "OperatorRow",
    "OptOutRow",
    "ParticipationRow",
    "PseudonymKeyRow",
    "QueryRow",
    "Reservation",
    "SessionRow",
    "VisitRow",
]


class Moment(TypeDecorator[datetime]):
    """An aware moment, kept in UTC on databases with and without time zones."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("a moment without a time zone")
        moment = value.astimezone(UTC)
        return moment.replace(tzinfo=None) if dialect.name == "sqlite" else moment

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class VisitRow(Base):
    """One visit of a study to this node. ``state`` changes only through ``governance.visits``."""

    __tablename__ = "visits"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    study_id: Mapped[str] = mapped_column(String(200))
    permit_id: Mapped[str] = mapped_column(String(200), index=True)
    dataset_id: Mapped[str] = mapped_column(String(200), index=True)
    request_digest: Mapped[str] = mapped_column(String(64), index=True)
    retry_key: Mapped[str | None] = mapped_column(String(64))  # sha256 of the client's Idempotency-Key
    user_kid: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(16), index=True)
    code: Mapped[str | None] = mapped_column(String(64))
    reason: Mapped[str] = mapped_column(Text, default="")
    decided_by: Mapped[str | None] = mapped_column(String(100))
    isolation: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(Moment())
    decided_at: Mapped[datetime | None] = mapped_column(Moment())
    ended_at: Mapped[datetime | None] = mapped_column(Moment())
    permit: Mapped[str] = mapped_column(Text)  # the exact signed bytes
    request: Mapped[str] = mapped_column(Text)
    receipt: Mapped[str | None] = mapped_column(Text)


class Reservation(Base):
    """Budget set aside for a visit: what the plan may spend and has not spent yet while ``open``."""

    __tablename__ = "reservations"

    visit_id: Mapped[str] = mapped_column(ForeignKey("visits.id"), primary_key=True)
    permit_id: Mapped[str] = mapped_column(String(200), index=True)
    dataset_id: Mapped[str] = mapped_column(String(200), index=True)
    events: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    open: Mapped[bool]
    reserved_at: Mapped[datetime] = mapped_column(Moment())
    released_at: Mapped[datetime | None] = mapped_column(Moment())


class Draw(Base):
    """Budget spent: one row per (visit, job, round), written before noise is drawn and never removed.

    It stands on its own, so that a spend found in the evidence log can be entered whatever else was lost.
    """

    __tablename__ = "draws"
    __table_args__ = (UniqueConstraint("visit_id", "job", "round"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    visit_id: Mapped[str] = mapped_column(String(64), index=True)
    permit_id: Mapped[str] = mapped_column(String(200), index=True)
    dataset_id: Mapped[str] = mapped_column(String(200), index=True)
    job: Mapped[str] = mapped_column(String(64))
    round: Mapped[int]
    events: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    request_sha256: Mapped[str] = mapped_column(String(64))
    drawn_at: Mapped[datetime] = mapped_column(Moment())
    output_sha256: Mapped[str | None] = mapped_column(String(64))
    output_bytes: Mapped[int | None]
    released_at: Mapped[datetime | None] = mapped_column(Moment())


class QueryRow(Base):
    """A spend outside of visits: reserved, then drawn or released, once and for all of its events together."""

    __tablename__ = "queries"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    dataset_id: Mapped[str] = mapped_column(String(200), index=True)
    permit_id: Mapped[str | None] = mapped_column(String(200), index=True)
    label: Mapped[str] = mapped_column(String(64))
    events: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    state: Mapped[str] = mapped_column(String(16), index=True)  # reserved, drawn or released
    reserved_at: Mapped[datetime] = mapped_column(Moment())
    settled_at: Mapped[datetime | None] = mapped_column(Moment())


class ParticipationRow(Base):
    """Who was in which run, for the whole node, as one value that is replaced whole: it cannot be half written."""

    __tablename__ = "participation"

    id: Mapped[int] = mapped_column(primary_key=True)  # 1
    version: Mapped[str] = mapped_column(String(32))  # a new one with every change
    subjects: Mapped[bytes] = mapped_column(LargeBinary)  # uint64, little-endian, rising
    group_numbers: Mapped[bytes] = mapped_column(LargeBinary)  # int32, little-endian: each patient's place in histories
    histories: Mapped[list[list[Any]]] = mapped_column(JSON)  # [population, [run, …]]


class Acknowledgement(Base):
    """A receipt given for a released artefact."""

    __tablename__ = "acknowledgements"
    __table_args__ = (UniqueConstraint("visit_id", "kind", "sha256"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    visit_id: Mapped[str] = mapped_column(ForeignKey("visits.id"), index=True)
    kind: Mapped[str] = mapped_column(String(32))
    sha256: Mapped[str] = mapped_column(String(64))
    receipt: Mapped[str] = mapped_column(Text)
    at: Mapped[datetime] = mapped_column(Moment())


class OptOutRow(Base):
    """One exercise of the right to opt out (Article 71). ``subject`` is an HMAC under the node's secret."""

    __tablename__ = "opt_outs"

    id: Mapped[int] = mapped_column(primary_key=True)
    subject: Mapped[str] = mapped_column(String(64), index=True)
    since: Mapped[datetime] = mapped_column(Moment())
    until: Mapped[datetime | None] = mapped_column(Moment())  # withdrawn at; None: in force
    recorded_at: Mapped[datetime] = mapped_column(Moment())


class PseudonymKeyRow(Base):
    """The key of one permit's pseudonyms; erased keys stay as rows without key, so that none is made anew."""

    __tablename__ = "pseudonym_keys"

    permit_id: Mapped[str] = mapped_column(String(200), primary_key=True)
    key: Mapped[bytes | None] = mapped_column(LargeBinary(32))
    created_at: Mapped[datetime] = mapped_column(Moment())
    erased_at: Mapped[datetime | None] = mapped_column(Moment())


class IssuerState(Base):
    """The newest status list seen of an issuer: an older one is refused as a rollback."""

    __tablename__ = "issuer_state"

    issuer_kid: Mapped[str] = mapped_column(String(64), primary_key=True)
    serial: Mapped[int]
    token: Mapped[str] = mapped_column(Text)
    seen_at: Mapped[datetime] = mapped_column(Moment())


class LogHeadRow(Base):
    """The newest state of the evidence log that this node signed, or that others showed it to have signed."""

    __tablename__ = "log_head"

    id: Mapped[int] = mapped_column(primary_key=True)  # 1
    size: Mapped[int] = mapped_column(BigInteger)
    root: Mapped[str] = mapped_column(String(64))
    token: Mapped[str] = mapped_column(Text)  # the signed head, or a receipt


class IngestRow(Base):
    """One intake of FHIR files, in numbers of lines."""

    __tablename__ = "ingests"

    id: Mapped[int] = mapped_column(primary_key=True)
    dataset_id: Mapped[str] = mapped_column(String(200), index=True)
    at: Mapped[datetime] = mapped_column(Moment())
    report: Mapped[dict[str, Any]] = mapped_column(JSON)


class FeasibilityRow(Base):
    """A feasibility question that was answered: what everybody who asks it again is told. ``asked`` is its digest."""

    __tablename__ = "feasibility_answers"
    __table_args__ = (UniqueConstraint("query_id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    asked: Mapped[str] = mapped_column(String(64), index=True)
    query_id: Mapped[str] = mapped_column(String(64))
    permit_id: Mapped[str] = mapped_column(String(200), index=True)
    user: Mapped[str] = mapped_column(Text)
    title: Mapped[str] = mapped_column(Text)
    view: Mapped[dict[str, Any]] = mapped_column(JSON)
    epsilon: Mapped[float]
    delta: Mapped[float]
    noise_multiplier: Mapped[float]
    smallest_cell: Mapped[int]
    count: Mapped[int | None]  # with its noise; None: below the smallest cell, or failed
    code: Mapped[str | None] = mapped_column(String(64))  # why the view failed in the data
    answered_at: Mapped[datetime] = mapped_column(Moment())
    receipt: Mapped[str | None] = mapped_column(Text)


class FhirClientRow(Base):
    """A program inside the hospital that may use the local FHIR API, under one permit."""

    __tablename__ = "fhir_clients"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(100))
    jwks: Mapped[dict[str, Any] | None] = mapped_column(JSON)  # its public keys, or
    jku: Mapped[str | None] = mapped_column(Text)  # where they are
    scope: Mapped[str] = mapped_column(Text)
    permit_id: Mapped[str] = mapped_column(String(200), index=True)
    permit: Mapped[str] = mapped_column(Text)  # the exact signed bytes
    registered_at: Mapped[datetime] = mapped_column(Moment())
    registered_by: Mapped[str] = mapped_column(String(100))
    revoked_at: Mapped[datetime | None] = mapped_column(Moment())
    used_at: Mapped[datetime | None] = mapped_column(Moment())  # the newest access token


class FhirAssertionRow(Base):
    """An assertion that bought an access token; it buys no second one while it would be valid."""

    __tablename__ = "fhir_assertions"

    client_id: Mapped[str] = mapped_column(String(64), primary_key=True)
    jti_sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    expires_at: Mapped[datetime] = mapped_column(Moment(), index=True)


class OperatorRow(Base):
    """A person who may log in at the console."""

    __tablename__ = "operators"

    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    role: Mapped[str] = mapped_column(String(16))
    salt: Mapped[bytes] = mapped_column(LargeBinary(16))
    verifier: Mapped[bytes] = mapped_column(LargeBinary(64))
    created_at: Mapped[datetime] = mapped_column(Moment())


class SessionRow(Base):
    """A console session; the cookie's value is kept as a hash."""

    __tablename__ = "sessions"

    digest: Mapped[str] = mapped_column(String(64), primary_key=True)
    actor: Mapped[str] = mapped_column(String(100))
    via: Mapped[str] = mapped_column(String(32))
    role: Mapped[str] = mapped_column(String(16))
    form_key: Mapped[str] = mapped_column(String(64))  # must come back with every form
    expires_at: Mapped[datetime] = mapped_column(Moment())
