"""Whether the schema is this Parley's, asked without Alembic: nearly every start finds it so, and importing and running
Alembic for that took a fifth of a second."""

from pathlib import Path

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from database import sqlite_file
from database.connect_error import naming_the_database
from database.engine import create_engine

VERSIONS = Path(__file__).parent / "migrations" / "versions"


def head() -> str:
    """The newest revision: files are named by theirs."""
    return max(file.name.partition("_")[0] for file in VERSIONS.glob("[0-9]*_*.py"))


async def is_current(url: str) -> bool:
    """False, too, where the version cannot be read: upgrading tells why."""
    engine = create_engine(url)
    try:
        with naming_the_database(url):
            async with engine.connect() as connection:
                found = await connection.scalars(text("SELECT version_num FROM alembic_version"))
                return list(found) == [head()]
    except DBAPIError:  # there is no such table yet
        return False
    finally:
        await engine.dispose()


async def bring_up_to_date(url: str) -> None:
    sqlite_file.check(url)
    if not await is_current(url):
        from database.migration import upgrade

        await upgrade(url)
