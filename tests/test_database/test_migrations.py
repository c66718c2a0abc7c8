import asyncio
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.util import CommandError
from sqlalchemy import Connection, inspect, text
from typer.testing import CliRunner

from database.engine import create_engine
from database.models import Base
from database.session import Database
from tools.data_migration import Status, app, downgrade, status, upgrade

HEAD = "0001"


async def test_the_migrations_build_what_the_models_say(database_url: str) -> None:
    def differences(connection: Connection) -> list[Any]:
        options = {"compare_type": True, "compare_server_default": True}
        return list(compare_metadata(MigrationContext.configure(connection, opts=options), Base.metadata))

    engine = create_engine(database_url)
    async with engine.connect() as connection:
        found = await connection.run_sync(differences)
    await engine.dispose()
    assert found == []


async def test_the_migrations_and_the_models_agree_on_constraints_and_partial_indexes(empty_url: str) -> None:
    """Alembic does not compare these."""

    def described(connection: Connection) -> str:
        inspector = inspect(connection)
        kinds: list[Callable[..., Mapping[Any, Any]]] = [
            inspector.get_multi_check_constraints,
            inspector.get_multi_unique_constraints,
            inspector.get_multi_foreign_keys,
            inspector.get_multi_pk_constraint,
            inspector.get_multi_indexes,
        ]
        found = [list(kind(filter_names=list(Base.metadata.tables)).items()) for kind in kinds]
        return json.dumps(found, default=str)

    engine = create_engine(empty_url)
    await upgrade(empty_url)
    async with engine.connect() as connection:
        migrated = await connection.run_sync(described)
    await downgrade(empty_url, "base")
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        created = await connection.run_sync(described)
    await engine.dispose()
    assert migrated == created


async def test_up_down_and_up_again(empty_url: str) -> None:
    assert await status(empty_url) == Status(None, HEAD, (HEAD,))
    await upgrade(empty_url)
    assert await status(empty_url) == Status(HEAD, HEAD, ())
    await downgrade(empty_url, "base")
    assert await status(empty_url) == Status(None, HEAD, (HEAD,))
    await upgrade(empty_url)
    await upgrade(empty_url)
    assert await status(empty_url) == Status(HEAD, HEAD, ())


async def test_a_database_newer_than_the_code_is_left_alone(database: Database, database_url: str) -> None:
    async with database.write() as session:
        await session.execute(text("UPDATE alembic_version SET version_num = 'from_the_future'"))
    with pytest.raises(CommandError, match="from_the_future"):
        await upgrade(database_url)


PROCESS = """
import asyncio, sys
from tools.data_migration import upgrade
print("ready", flush=True)
sys.stdin.readline()
asyncio.run(upgrade(sys.argv[1]))
"""


async def test_processes_that_upgrade_at_once_wait_for_each_other(empty_url: str) -> None:
    pipe = asyncio.subprocess.PIPE
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable, "-c", PROCESS, empty_url, stdin=pipe, stdout=pipe, stderr=pipe
        )
        for _ in range(3)
    ]
    for process in processes:
        assert process.stdout is not None
        assert await process.stdout.readline() == b"ready\n"
    outputs = await asyncio.gather(*(process.communicate(b"go\n") for process in processes))
    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    assert await status(empty_url) == Status(HEAD, HEAD, ())


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"sqlite:///{tmp_path}/cli.db"
    monkeypatch.setenv("PARLEY_DATABASE__URL", url)
    return url


def test_the_command_line_goes_up_down_and_tells(url: str) -> None:
    outputs = [CliRunner().invoke(app, arguments) for arguments in (["upgrade"], ["status"], ["downgrade", "base"])]
    assert [output.exit_code for output in outputs] == [0, 0, 0]
    assert outputs[1].stdout == f"current: {HEAD}\nhead:    {HEAD}\npending: -\n"
    assert "pending: 0001" in CliRunner().invoke(app, ["status", "--database-url", url]).stdout


def test_the_command_line_says_what_is_wrong() -> None:
    result = CliRunner().invoke(app, ["upgrade", "--database-url", "mysql://me:secret@host/db"])
    assert result.exit_code == 1
    assert "mysql" in result.stderr
    assert "secret" not in result.output
