"""Transactions of a node's database.

A writing transaction takes the write lock when it begins (SQLite: BEGIN IMMEDIATE; PostgreSQL: an advisory lock of
the transaction), so that what it read is still true when it commits. SQLite runs in WAL mode with full syncs: a
committed spend survives a power cut.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import ArgumentError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from vht_federate.errors import InputError, UnavailableError

__all__ = ["Database"]

POOLED = 15  # connections at rest
AT_ONCE = 80  # one for each thread that a node has, and some; PostgreSQL gives 97 unless it is told to give more
_WRITE = "vht_write"
_LOCK = 0x7648_7453  # one number for "a node's writers" in PostgreSQL's advisory lock space


class Database:
    """The database behind ``url``. Raises InputError VHT-INPUT-DATABASE for a URL that no driver understands."""

    def __init__(self, url: str) -> None:
        try:
            pool = (
                {"pool_size": POOLED, "max_overflow": AT_ONCE - POOLED} if url != "sqlite://" else {}
            )  # in memory: one
            self.engine = create_engine(url, pool_pre_ping=not url.startswith("sqlite"), **pool)
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise InputError(
                "the database URL is not understood",
                code="VHT-INPUT-DATABASE",
                hint="sqlite:///path, or postgresql+psycopg://user@host/name with the extra 'postgresql' installed",
            ) from error
        self._sqlite = self.engine.dialect.name == "sqlite"
        self._mine = threading.local()
        self._writers: set[int] = set()  # threads in a writing transaction
        if self._sqlite:
            _prepare_sqlite(self.engine)

    @classmethod
    def at(cls, path: Path) -> "Database":
        """SQLite in ``path``."""
        return cls(f"sqlite:///{path}")

    @contextmanager
    def read(self) -> Iterator[Session]:
        """A reading transaction: one consistent picture, nothing written.

        Raises UnavailableError VHT-UNAVAILABLE-DATABASE where no connection is to be had.
        """
        with self._connect() as connection, connection.begin(), Session(connection, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """A writing transaction: commits at the end of the block, rolls back on any exception.

        Raises UnavailableError VHT-UNAVAILABLE-DATABASE where the database fails at it, as on a full disk.
        """
        with _typed(), self._connect() as plain:
            connection = plain.execution_options(**{_WRITE: True})
            with connection.begin(), Session(connection, expire_on_commit=False) as session:
                if not self._sqlite:
                    session.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
                with self._writing(session):
                    yield session
                session.commit()

    @property
    def written_here(self) -> Session | None:
        """The session of the writing transaction that this thread is in."""
        session: Session | None = getattr(self._mine, "session", None)
        return session

    @property
    def written_elsewhere(self) -> bool:
        """Is another thread of this process in a writing transaction?"""
        return bool(self._writers - {threading.get_ident()})

    @contextmanager
    def _writing(self, session: Session) -> Iterator[None]:
        self._mine.session = session
        self._writers.add(threading.get_ident())
        try:
            yield
        finally:
            self._writers.discard(threading.get_ident())
            self._mine.session = None

    @contextmanager
    def _connect(self) -> Iterator[Connection]:
        try:
            connection = self.engine.connect()
        except OperationalError as error:
            raise UnavailableError(
                "the node's database does not answer",
                code="VHT-UNAVAILABLE-DATABASE",
                hint="check database_url in node.toml and that the server runs",
            ) from error
        except PoolTimeoutError as error:
            raise UnavailableError(
                "all connections to the node's database are taken",
                code="VHT-UNAVAILABLE-DATABASE",
                hint="ask again in 15 seconds",
                retry_after_s=15,
            ) from error
        with connection:
            yield connection

    def close(self) -> None:
        self.engine.dispose()


@contextmanager
def _typed() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        raise UnavailableError(
            "the node's database could not be written",
            code="VHT-UNAVAILABLE-DATABASE",
            hint="free the disk of the node: what its evidence log holds is then entered without a restart",
        ) from error


def _prepare_sqlite(engine: Engine) -> None:
    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin where we say so
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=15000"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine, "begin")
    def on_begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(_WRITE, False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
