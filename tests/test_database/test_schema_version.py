"""A start asks for the schema's version without Alembic, and migrates only what is not this Parley's."""

import subprocess
import sys
from pathlib import Path

import pytest
from alembic.util import CommandError
from sqlalchemy import text

from database import schema_version
from database.engine import WRITE, create_engine
from database.migration import downgrade, status

ROOT = Path(__file__).parents[2]


async def test_the_newest_revision_is_alembics(database_url: str) -> None:
    assert (await status(database_url)).head == schema_version.head()


async def test_an_older_schema_is_brought_up_to_date(database_url: str) -> None:
    await downgrade(database_url, "0012")
    assert not await schema_version.is_current(database_url)
    await schema_version.bring_up_to_date(database_url)
    assert await schema_version.is_current(database_url)


async def test_a_new_database_gets_its_tables(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'new.db'}"
    await schema_version.bring_up_to_date(url)
    assert (await status(url)).pending == ()


async def test_a_newer_schema_is_refused(database_url: str) -> None:
    engine = create_engine(database_url).execution_options(**{WRITE: True})
    async with engine.begin() as connection:
        await connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    await engine.dispose()
    with pytest.raises(CommandError, match="9999"):
        await schema_version.bring_up_to_date(database_url)


def test_an_up_to_date_schema_needs_no_alembic(sqlite_template: Path) -> None:
    code = (
        "import asyncio, sys\nfrom database import schema_version\n"
        "asyncio.run(schema_version.bring_up_to_date(sys.argv[1])); print('alembic' in sys.modules)"
    )
    command = [sys.executable, "-c", code, f"sqlite:///{sqlite_template}"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stdout.strip()) == (0, "False"), run.stderr
