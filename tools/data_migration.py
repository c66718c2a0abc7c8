"""Brings the database to the schema this code expects: `parley migrate upgrade | downgrade | status`.

Safe when several processes start at once: the lock is taken before the version is read, the others wait and find
nothing left to do.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, TypeVar

import typer
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.script.revision import ResolutionError
from alembic.util import CommandError
from sqlalchemy import Connection, text
from sqlalchemy.ext.asyncio import AsyncConnection

from database import sqlite_file
from database.engine import WRITE, create_engine, parse_url
from services.errors import Unavailable
from tools.exits import explain, in_one_line

T = TypeVar("T")

PATIENCE_S = 600.0  # somebody else's migration of a large table may have to be waited for
LOCK = 0x7061726C6579  # "parley", the key of our advisory lock

app = typer.Typer(help="The database's schema.", no_args_is_help=True, rich_markup_mode=None)


@dataclass(frozen=True, slots=True)
class Status:
    current: str | None
    head: str | None
    pending: tuple[str, ...]


async def upgrade(url: str, revision: str = "head") -> None:
    async with _alone(url) as connection:
        await connection.run_sync(_run, command.upgrade, revision)


async def downgrade(url: str, revision: str) -> None:
    async with _alone(url) as connection:
        await connection.run_sync(_run, command.downgrade, revision)


async def status(url: str) -> Status:
    engine = create_engine(url)
    try:
        async with reaching(url), engine.connect() as connection:
            return await connection.run_sync(_status)
    finally:
        await engine.dispose()


@asynccontextmanager
async def _alone(url: str) -> AsyncIterator[AsyncConnection]:
    """One transaction, to which all other migrations of this database wait."""
    check_file(url)
    engine = create_engine(url, patience_s=PATIENCE_S).execution_options(**{WRITE: True})
    try:
        async with reaching(url), engine.connect() as connection:
            await _lift_foreign_keys(connection)
            async with connection.begin():
                await _lock(connection)
                yield connection
                await _check_foreign_keys(connection)
    finally:
        await engine.dispose()


def check_file(url: str) -> None:
    """Raises for a file of another program's, which stays as it is."""
    sqlite_file.check(parse_url(url))


@asynccontextmanager
async def reaching(url: str) -> AsyncIterator[None]:
    """The system's own error names an address at best."""
    try:
        yield
    except OSError as error:
        target = parse_url(url)
        where = f"at {target.host}:{target.port or 5432}" if target.host else target.database
        raise Unavailable(f"The database {where} cannot be reached: {explain(error)}") from error


async def _lock(connection: AsyncConnection) -> None:
    """On SQLite the transaction has begun with the write lock."""
    if connection.dialect.name == "postgresql":
        await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": LOCK})


async def _lift_foreign_keys(connection: AsyncConnection) -> None:
    """SQLite changes a table by making it anew; dropping the old one would take all that refers to it along."""
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


Url = Annotated[
    str | None, typer.Option("--database-url", envvar="PARLEY_DATABASE__URL", help="Default: the settings'.")
]
Revision = Annotated[str, typer.Argument()]


@app.command("upgrade")
def _upgrade(revision: Revision = "head", database_url: Url = None) -> None:
    """Brings the schema up to a revision."""
    _finish(upgrade(_url(database_url), revision))


@app.command("downgrade")
def _downgrade(revision: Revision, database_url: Url = None) -> None:
    """Takes the schema back to a revision ("base": nothing is left)."""
    _finish(downgrade(_url(database_url), revision))


@app.command("status")
def _show_status(database_url: Url = None) -> None:
    """Shows where the schema stands and what is pending."""
    found = _finish(status(_url(database_url)))
    typer.echo(f"current: {found.current or '-'}\nhead:    {found.head}\npending: {', '.join(found.pending) or '-'}")


def _finish(work: Coroutine[None, None, T]) -> T:
    with in_one_line():
        return asyncio.run(work)


def _url(given: str | None) -> str:
    if given is not None:
        return given
    from app.common import configuration  # here: it takes a moment

    with in_one_line():
        return configuration.read().database.url


def main() -> None:
    app()


if __name__ == "__main__":
    main()
