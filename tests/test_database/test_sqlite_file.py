"""Files of other programs are rejected and unchanged."""

import resource
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from alembic.util import CommandError

from database.migration import downgrade, upgrade
from database.sqlite_file import ForeignDatabase


def write(path: Path, *statements: str) -> None:
    with closing(sqlite3.connect(path)) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


@pytest.mark.parametrize(
    "statements",
    [
        ("CREATE TABLE notes (text)",),
        ("CREATE TABLE turns (text)",),
        ("CREATE TABLE notes (text)", "CREATE TABLE alembic_version (version_num)"),
    ],
    ids=["plain", "one of our names", "migrated by the same library"],
)
async def test_foreign_database_is_rejected_and_unchanged(tmp_path: Path, statements: tuple[str, ...]) -> None:
    path = tmp_path / "other.db"
    write(path, *statements)
    before = path.read_bytes()
    with pytest.raises(ForeignDatabase, match="another program"):
        await upgrade(f"sqlite:///{path}")
    assert path.read_bytes() == before


@pytest.mark.parametrize("content", [b"not a database, but long enough to be looked at" * 9])
async def test_other_file_is_rejected(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "text.db"
    path.write_bytes(content)
    with pytest.raises(ForeignDatabase, match="no SQLite database"):
        await upgrade(f"sqlite:///{path}")
    assert path.read_bytes() == content


async def test_folder_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ForeignDatabase, match="a folder"):
        await upgrade(f"sqlite:///{tmp_path}")


@pytest.mark.parametrize("prepared", [False, True], ids=["missing", "empty"])
async def test_own_database_is_accepted_in_any_state(tmp_path: Path, prepared: bool) -> None:
    path = tmp_path / "parley.db"
    if prepared:
        path.touch()
    await upgrade(f"sqlite:///{path}")
    await upgrade(f"sqlite:///{path}")
    await downgrade(f"sqlite:///{path}", "base")
    await upgrade(f"sqlite:///{path}", "0001")
    await upgrade(f"sqlite:///{path}")


async def test_a_newer_schema_is_named(sqlite_url: str) -> None:
    write(Path(sqlite_url.removeprefix("sqlite:///")), "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(CommandError, match="'9999' is none of this Parley's"):
        await upgrade(sqlite_url)


def limited(bytes_: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_, bytes_))


def test_full_disk_is_reported_in_a_line(tmp_path: Path) -> None:
    """Limits the file size by the system."""
    command = [sys.executable, "-m", "tools.cli", "migrate", "upgrade", "--database-url", f"sqlite:///{tmp_path}/a.db"]
    run = subprocess.run(command, capture_output=True, text=True, check=False, preexec_fn=limited(4096), timeout=120)
    assert run.returncode == 2
    assert run.stderr.startswith("Error: The database cannot be used: ")
    assert run.stderr.count("\n") == 1
