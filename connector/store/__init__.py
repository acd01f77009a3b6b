"""What a node remembers: models, migrations and transactions (SQLite by default, PostgreSQL by URL)."""

from connector.store.database import Database
from connector.store.migrate import migrate

__all__ = ["Database", "migrate"]
