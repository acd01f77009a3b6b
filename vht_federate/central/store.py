"""The platform's memory: publications and releases in one SQLite file, their files on disk beside it.

    platform.sqlite
    publications/ID/bundle/…        an evidence bundle, unpacked and verified
    publications/ID/bundle.tar.gz   the same as it can be sent on
    incoming/…                      uploads that were not admitted yet; emptied at start

A publication appears on disk by one rename and in the database by one transaction, in this order: a crash between the
two leaves a folder that the next attempt replaces.
"""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sqlalchemy import ForeignKey, NullPool, String, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from vht_federate.errors import InputError

__all__ = ["Catalogue", "NewRelease", "Publication", "Release"]


class _Base(DeclarativeBase):
    pass


class _PublicationRow(_Base):
    __tablename__ = "publications"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    sha256: Mapped[str] = mapped_column(String(64), unique=True)
    received_at: Mapped[str]  # RFC 3339, UTC
    study_id: Mapped[str]
    study_title: Mapped[str]
    permit_id: Mapped[str]
    evidence: Mapped[str]  # JSON of the verification
    releases: Mapped[list["_ReleaseRow"]] = relationship(back_populates="publication", lazy="selectin")


class _ReleaseRow(_Base):
    __tablename__ = "releases"
    id: Mapped[str] = mapped_column(String(200), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16), index=True)
    publication_id: Mapped[str] = mapped_column(ForeignKey("publications.id"))
    folder: Mapped[str]  # within the bundle
    sha256: Mapped[str] = mapped_column(String(64))
    facts: Mapped[str]  # JSON
    publication: Mapped[_PublicationRow] = relationship(back_populates="releases", lazy="joined")


@dataclass(frozen=True)
class Release:
    """A component or a cohort of the catalogue."""

    id: str
    kind: str
    publication: str
    study_id: str
    permit_id: str
    published_at: str
    folder: str
    sha256: str
    facts: dict[str, Any]


@dataclass(frozen=True)
class Publication:
    """An admitted evidence bundle. ``releases``: kind -> id."""

    id: str
    sha256: str
    received_at: str
    study_id: str
    study_title: str
    permit_id: str
    evidence: dict[str, Any]
    releases: dict[str, str]


@dataclass(frozen=True)
class NewRelease:
    """A release about to be catalogued."""

    id: str
    kind: str
    folder: str
    sha256: str
    facts: dict[str, Any]


class Catalogue:
    """All publications of one state directory. Each call is one transaction on its own connection."""

    def __init__(self, state: Path) -> None:
        self._state = state
        shutil.rmtree(self.incoming, ignore_errors=True)
        for folder in (self.incoming, self._state / "publications"):
            folder.mkdir(parents=True, exist_ok=True)
        self._engine = create_engine(f"sqlite:///{state / 'platform.sqlite'}", poolclass=NullPool)
        _Base.metadata.create_all(self._engine)

    @property
    def incoming(self) -> Path:
        return self._state / "incoming"

    def folder(self, publication: str) -> Path:
        """Where a publication's files lie. ``publication`` must be an id from this catalogue."""
        return self._state / "publications" / publication

    def find(self, sha256: str) -> Publication | None:
        """The publication whose bundle has this manifest digest."""
        with Session(self._engine) as session:
            row = session.scalar(select(_PublicationRow).where(_PublicationRow.sha256 == sha256))
            return _publication(row) if row else None

    def add(self, prepared: Path, new: Publication, releases: list[NewRelease]) -> Publication:
        """Move the folder ``prepared`` into place, then enter it. A release that is known stays where it is."""
        target = self.folder(new.id)
        if target.exists():
            shutil.rmtree(target)
        prepared.replace(target)
        with Session(self._engine) as session, session.begin():
            session.add(
                _PublicationRow(
                    id=new.id,
                    sha256=new.sha256,
                    received_at=new.received_at,
                    study_id=new.study_id,
                    study_title=new.study_title,
                    permit_id=new.permit_id,
                    evidence=json.dumps(new.evidence),
                )
            )
            for release in releases:
                if session.get(_ReleaseRow, release.id) is None:
                    facts = json.dumps(release.facts)
                    row = _ReleaseRow(
                        id=release.id, kind=release.kind, folder=release.folder, sha256=release.sha256, facts=facts
                    )
                    row.publication_id = new.id
                    session.add(row)
        return self.publication(new.id)

    def publications(self) -> list[Publication]:
        """The newest first."""
        with Session(self._engine) as session:
            rows = session.scalars(select(_PublicationRow).order_by(_PublicationRow.received_at.desc()))
            return [_publication(row) for row in rows]

    def publication(self, identifier: str) -> Publication:
        """Raises InputError VHT-INPUT-NOT-FOUND."""
        with Session(self._engine) as session:
            row = session.get(_PublicationRow, identifier)
            if row is None:
                raise _unknown("publication")
            return _publication(row)

    def releases(self, kind: str) -> list[Release]:
        """Releases of ``kind``, the newest first."""
        with Session(self._engine) as session:
            rows = session.scalars(select(_ReleaseRow).where(_ReleaseRow.kind == kind))
            releases = [_release(row) for row in rows]
        return sorted(releases, key=lambda release: release.published_at, reverse=True)

    def release(self, kind: str, identifier: str) -> Release:
        """Raises InputError VHT-INPUT-NOT-FOUND."""
        with Session(self._engine) as session:
            row = session.get(_ReleaseRow, identifier)
            if row is None or row.kind != kind:
                raise _unknown(kind)
            return _release(row)


def _publication(row: _PublicationRow) -> Publication:
    return Publication(
        id=row.id,
        sha256=row.sha256,
        received_at=row.received_at,
        study_id=row.study_id,
        study_title=row.study_title,
        permit_id=row.permit_id,
        evidence=json.loads(row.evidence),
        releases={release.kind: release.id for release in row.releases},
    )


def _release(row: _ReleaseRow) -> Release:
    return Release(
        id=row.id,
        kind=row.kind,
        publication=row.publication_id,
        study_id=row.publication.study_id,
        permit_id=row.publication.permit_id,
        published_at=row.publication.received_at,
        folder=row.folder,
        sha256=row.sha256,
        facts=json.loads(row.facts),
    )


def _unknown(kind: str) -> InputError:
    return InputError(f"there is no such {kind}", code="VHT-INPUT-NOT-FOUND", hint="the catalogue is at /")
