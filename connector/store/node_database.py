"""Where a node's database is, and that it is at the newest schema."""

from connector.settings import NodeFiles, NodeSettings
from connector.store import Database, migrate

__all__ = ["open_database"]


def open_database(settings: NodeSettings, files: NodeFiles) -> Database:
    """The node's database at the newest schema."""
    database = Database(settings.database_url) if settings.database_url else Database.at(files.database)
    migrate(database)
    return database
