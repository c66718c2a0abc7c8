"""The commands of docs/upgrades.md, as they are written there."""

import asyncio
import os
import re
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from database.migration import status
from database.session import Database
from services.conversation_service import ConversationService
from tests.test_tools.test_history import contents, fill

PAGE = (Path(__file__).parents[2] / "docs" / "upgrades.md").read_text("utf-8")
BLOCKS = re.findall(r"^```sh\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)

COPIES = {"sqlite": "parley-backup.db", "postgresql": "parley.dump"}


def block(command: str) -> str:
    """The only one with it."""
    (found,) = [each for each in BLOCKS if command in each]
    return str(found)


def run(command: str, folder: Path, url: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PARLEY_")}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    if url.startswith("postgresql"):
        environment["PARLEY_DATABASE__URL"] = url
    done = subprocess.run(
        ["bash", "-e", "-c", block(command)], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Database]:
    """Restoring replaces the file of an open one."""
    database = Database(url)
    try:
        yield database
    finally:
        await database.close()


async def test_a_backup_is_made_and_restored(database_url: str, backend: str, tmp_path: Path) -> None:
    if backend == "postgresql" and shutil.which("pg_dump") is None:
        pytest.skip("needs PostgreSQL's client programs")
    back_up, restore = {"sqlite": ("VACUUM INTO", "cp parley"), "postgresql": ("pg_dump", "pg_restore")}[backend]
    (tmp_path / "parley-files").mkdir()
    (tmp_path / "parley-files" / "one").write_text("kept")
    async with opened(database_url) as database:
        made = await fill(database)
        before = await contents(database, made, "local")
        await asyncio.to_thread(run, back_up, tmp_path, database_url)
        await fill(database)
        page = await ConversationService(database).page("local", limit=10)
        (tmp_path / "parley-files" / "one").unlink()
    backups = [tmp_path / name for name in (COPIES[backend], "parley-files.tar.gz")]
    assert [path.stat().st_mode & 0o777 for path in backups] == [0o600, 0o600]
    await asyncio.to_thread(run, restore, tmp_path, database_url)
    async with opened(database_url) as database:
        assert await contents(database, made, "local") == before
        restored = await ConversationService(database).page("local", limit=10)
        assert len(page.data) == 2 * len(restored.data)  # without what came after the backup
    assert (tmp_path / "parley-files" / "one").read_text() == "kept"


async def test_the_schema_goes_back_and_forth(database_url: str, tmp_path: Path) -> None:
    async with opened(database_url) as database:
        made = await fill(database)
        before = await contents(database, made, "local")
    head = (await status(database_url)).head
    await asyncio.to_thread(run, "migrate downgrade", tmp_path, database_url)
    assert (await status(database_url)).pending == ("0013",)
    output = await asyncio.to_thread(run, "migrate upgrade", tmp_path, database_url)
    assert output.startswith("current: 0012\n")
    assert (await status(database_url)).current == head
    async with opened(database_url) as database:
        assert await contents(database, made, "local") == before


def test_there_is_no_other_command() -> None:
    assert len(BLOCKS) == 6
