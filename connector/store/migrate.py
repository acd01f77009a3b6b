"""Bring a database to the newest schema: run at ``init`` and at every ``serve``."""

from pathlib import Path

from alembic import command
from alembic.config import Config

from connector.store.database import Database

__all__ = ["migrate"]


def migrate(database: Database) -> None:
    """Apply the migrations that ``database`` lacks, in one transaction. Does nothing on a current one."""
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    with database.write() as session:
        config.attributes["connection"] = session.connection()
        command.upgrade(config, "head")
