"""SQLite files are not readable by other users, whatever the umask."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import text

from database import private_file
from database.session import Database


@pytest.fixture(autouse=True)
def generous_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    return {each.name.removeprefix("parley.db"): each.stat().st_mode & 0o777 for each in folder.iterdir()}


async def write(database: Database) -> None:
    async with database.write() as session:
        await session.execute(text("CREATE TABLE IF NOT EXISTS t (n INTEGER)"))
        await session.execute(text("INSERT INTO t VALUES (1)"))


async def test_new_files_are_private(tmp_path: Path) -> None:
    databases = [Database(f"sqlite:///{tmp_path}/parley.db") for _ in range(4)]
    await asyncio.gather(*map(write, databases))
    assert modes(tmp_path) == {"": 0o600, "-wal": 0o600, "-shm": 0o600}
    for database in databases:
        await database.close()
    assert modes(tmp_path) == {"": 0o600}


async def test_readable_files_are_restricted_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    earlier = Database(f"sqlite:///{tmp_path}/parley.db")
    await write(earlier)
    for name in ("parley.db", "parley.db-wal", "parley.db-shm"):
        (tmp_path / name).chmod(0o664)
    database = Database(f"sqlite:///{tmp_path}/parley.db")
    await write(database)
    assert modes(tmp_path) == {"": 0o600, "-wal": 0o600, "-shm": 0o600}
    assert "parley.db had mode 0664, readable by other users; changed to 0600" in caplog.text
    caplog.clear()
    await write(earlier)
    await database.close()
    await earlier.close()
    assert caplog.text == ""


@pytest.mark.parametrize(("mode", "becomes"), [(0o644, 0o600), (0o444, 0o400), (0o755, 0o600), (0o600, 0o600)])
def test_no_permission_is_added(tmp_path: Path, mode: int, becomes: int) -> None:
    path = tmp_path / "parley.db"
    path.touch()
    path.chmod(mode)
    private_file.make_private(str(path))
    assert modes(tmp_path) == {"": becomes}


def test_failed_restriction_is_logged_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "parley.db"
    path.touch(0o644)

    def refuse(path: str, mode: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(private_file.os, "chmod", refuse)
    for _ in range(3):
        private_file.make_private(str(path))
    (record,) = caplog.records
    assert record.getMessage().endswith("has mode 0644 and may be readable by other users: Operation not permitted")


def test_missing_folder_is_reported_by_sqlite(tmp_path: Path) -> None:
    private_file.make_private(str(tmp_path / "nowhere" / "parley.db"))
    assert modes(tmp_path) == {}
