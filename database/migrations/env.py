"""Run by Alembic. The connection, its transaction and its lock come from database/migration.py, through run_sync."""

from alembic import context

from database.models import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_as_batch=connection.dialect.name == "sqlite",  # SQLite changes a table by making it anew
    transactional_ddl=True,  # on SQLite too: we start the transactions there ourselves
)
with context.begin_transaction():
    context.run_migrations()
