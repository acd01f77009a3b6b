"""Bring a database to the newest schema: run at ``init`` and at every ``serve``.

Alembic is loaded only where something is to be migrated: a database at ``HEAD`` costs one look at its version.
"""

from pathlib import Path

from sqlalchemy import inspect, text
from sqlalchemy.exc import OperationalError

from connector.store.database import Database

__all__ = ["HEAD", "migrate"]

HEAD = "0005"  # revision of the newest script in ``migrations/versions``
SCRIPTS = Path(__file__).parent / "migrations"


def migrate(database: Database) -> None:
    """Apply the migrations that ``database`` lacks, in one transaction. Does nothing on a current one."""
    if _version(database) == HEAD:
        return
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    with database.write() as session:
        config.attributes["connection"] = session.connection()
        command.upgrade(config, "head")


def _version(database: Database) -> str | None:
    """None for a database that has no schema yet, or that cannot be read: writing to it will say why."""
    try:
        with database.read() as session:
            if not inspect(session.connection()).has_table("alembic_version"):
                return None
            version: str | None = session.scalar(text("SELECT version_num FROM alembic_version"))
            return version
    except OperationalError:
        return None
