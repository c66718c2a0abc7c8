"""Schema migrations. Safe when several processes start at once: the lock is taken before the version is read."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.script.revision import ResolutionError
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from database import sqlite_file
from database.connect_error import naming_the_database
from database.engine import WRITE, create_engine

LOCK_TIMEOUT_S = 600.0  # another process may be migrating a large table
LOCK = 0x7061726C6579  # "parley", the key of our advisory lock


@dataclass(frozen=True, slots=True)
class Status:
    current: str | None
    head: str | None
    pending: tuple[str, ...]


async def upgrade(url: str, revision: str = "head") -> None:
    async with _locked(url) as connection:
        await connection.run_sync(_run, command.upgrade, revision)


async def downgrade(url: str, revision: str) -> None:
    async with _locked(url) as connection:
        await connection.run_sync(_run, command.downgrade, revision)


async def status(url: str) -> Status:
    engine = create_engine(url)
    try:
        with naming_the_database(url):
            async with engine.connect() as connection:
                return await connection.run_sync(_status)
    finally:
        await engine.dispose()


@asynccontextmanager
async def _locked(url: str) -> AsyncIterator[AsyncConnection]:
    """One transaction; all other migrations of this database wait for it."""
    sqlite_file.check(url)
    engine = create_engine(url, patience_s=LOCK_TIMEOUT_S).execution_options(**{WRITE: True})
    try:
        with naming_the_database(url):
            async with engine.connect() as connection:
                await _disable_foreign_keys(connection)
                async with connection.begin():
                    await _lock(connection)
                    yield connection
                    await _check_foreign_keys(connection)
    finally:
        await engine.dispose()


async def _lock(connection: AsyncConnection) -> None:
    """On SQLite the transaction began with the write lock."""
    if connection.dialect.name == "postgresql":
        await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})


async def _disable_foreign_keys(connection: AsyncConnection) -> None:
    """SQLite changes a table by copying it; dropping the old copy would delete the rows that refer to it."""
    if connection.dialect.name == "sqlite":
        raw = await connection.get_raw_connection()
        assert raw.driver_connection is not None
        await raw.driver_connection.execute("PRAGMA foreign_keys=OFF")  # has no effect inside a transaction


async def _check_foreign_keys(connection: AsyncConnection) -> None:
    if connection.dialect.name == "sqlite" and (await connection.execute(text("PRAGMA foreign_key_check"))).first():
        raise CommandError("The migration would leave references to rows that do not exist; nothing was changed")


def _run(connection: Connection, step: Callable[[Config, str], None], revision: str) -> None:
    config = _config()
    config.attributes["connection"] = connection
    _check_revision(connection)
    step(config, revision)


def _check_revision(connection: Connection) -> None:
    current = MigrationContext.configure(connection).get_current_revision()
    try:
        ScriptDirectory.from_config(_config()).get_revision(current or "base")
    except (CommandError, ResolutionError):
        raise CommandError(
            f"The database's schema '{current}' is none of this Parley's: a newer one, or another program, has made it"
        ) from None


def _config() -> Config:
    config = Config()
    config.set_main_option("script_location", "database:migrations")  # by package: right in a checkout and in a wheel
    return config


def _status(connection: Connection) -> Status:
    scripts = ScriptDirectory.from_config(_config())
    current, head = MigrationContext.configure(connection).get_current_revision(), scripts.get_current_head()
    missing = [script.revision for script in scripts.iterate_revisions(head, current or "base")]
    return Status(current, head, tuple(reversed(missing)))
