"""The node's database: migrations match the models, writers exclude each other, on SQLite and on PostgreSQL."""

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from connector.store import Database, migrate
from connector.store.migrate import HEAD, SCRIPTS
from connector.store.models import Base, Draw, IssuerState, OptOutRow
from vht_federate.errors import InputError, UnavailableError
from vht_federate.tcp_ports import free_port

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    if request.param == "sqlite":
        database = Database.at(tmp_path / "node.sqlite")
    else:
        database = Database(request.getfixturevalue("postgresql"))
    migrate(database)
    yield database
    if request.param == "postgresql":
        with database.write() as session:
            for table in reversed(Base.metadata.sorted_tables):
                session.execute(table.delete())
    database.close()


def _draw(**changes: object) -> Draw:
    fields = {
        "visit_id": "v-1",
        "permit_id": "p",
        "dataset_id": "d",
        "job": "train",
        "round": 1,
        "events": [{"label": "train"}],
        "request_sha256": "00",
        "drawn_at": NOW,
        **changes,
    }
    return Draw(**fields)


def test_the_head_that_a_current_database_is_known_by_is_alembics() -> None:
    config = Config()
    config.set_main_option("script_location", str(SCRIPTS))
    assert ScriptDirectory.from_config(config).get_current_head() == HEAD


def test_the_migrations_make_exactly_the_tables_of_the_models(database: Database) -> None:
    migrate(database)  # a second time changes nothing
    with database.read() as session:
        context = MigrationContext.configure(session.connection(), opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []


def test_a_moment_comes_back_in_utc_whatever_zone_it_was_given_in(database: Database) -> None:
    east = NOW.astimezone(timezone(timedelta(hours=9)))
    with database.write() as session:
        session.add(OptOutRow(subject="s", since=east, recorded_at=NOW))
    with database.read() as session:
        row = session.scalars(select(OptOutRow)).one()
        assert row.since == NOW
        assert row.since.tzinfo is UTC
        assert row.until is None


def test_a_moment_without_a_zone_is_refused(database: Database) -> None:
    with pytest.raises(Exception, match="without a time zone"), database.write() as session:
        session.add(OptOutRow(subject="s", since=NOW.replace(tzinfo=None), recorded_at=NOW))


def test_a_round_is_drawn_once_even_by_two_who_do_not_know_each_other(database: Database) -> None:
    with database.write() as session:
        session.add(_draw())
    with pytest.raises(IntegrityError), database.write() as session:
        session.add(_draw())


def test_an_exception_rolls_everything_back(database: Database) -> None:
    def half() -> None:
        with database.write() as session:
            session.add(_draw())
            session.flush()
            raise KeyError

    with pytest.raises(KeyError):
        half()
    with database.read() as session:
        assert session.scalars(select(Draw)).all() == []


def test_writers_that_read_before_they_write_lose_no_update(database: Database) -> None:
    with database.write() as session:
        session.add(IssuerState(issuer_kid="k", serial=0, token="", seen_at=NOW))

    def count() -> None:
        for _ in range(10):
            with database.write() as session:
                row = session.get(IssuerState, "k")
                assert row is not None
                row.serial += 1

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.read() as session:
        row = session.get(IssuerState, "k")
        assert row is not None
        assert row.serial == 40


def test_a_reader_is_not_held_up_by_a_writer(database: Database) -> None:
    with database.write() as writing:
        writing.add(_draw())
        writing.flush()
        with database.read() as reading:
            assert reading.scalars(select(Draw)).all() == []


def test_an_url_that_no_driver_understands_is_an_input_error() -> None:
    with pytest.raises(InputError) as caught:
        Database("nonsense")
    assert caught.value.code == "VHT-INPUT-DATABASE"


def test_a_server_that_is_gone_is_said_to_be_unavailable() -> None:
    database = Database(f"postgresql+psycopg://node@127.0.0.1:{free_port()}/postgres")
    with pytest.raises(UnavailableError), database.read():
        pass
    database.close()
