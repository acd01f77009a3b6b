"""Alembic's entry: migrates over the connection that ``connector.store.migrate`` hands in."""

from alembic import context

from connector.store.models import Base

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=Base.metadata, render_as_batch=True)
context.run_migrations()
