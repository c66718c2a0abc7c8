import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from sqlalchemy import text

from database.engine import create_engine
from database.session import Database


@pytest.mark.parametrize(
    ("given", "driver"),
    [
        ("sqlite:///{folder}/a.db", "aiosqlite"),
        ("sqlite+aiosqlite:///{folder}/a.db", "aiosqlite"),
        ("postgres://me:secret@host/db", "asyncpg"),
        ("postgresql://me:secret@host:5433/db?sslmode=require", "asyncpg"),
        ("postgresql+asyncpg://me:secret@host/db", "asyncpg"),
    ],
)
def test_every_url_form_gets_an_async_driver(given: str, driver: str, tmp_path: Path) -> None:
    engine = create_engine(given.format(folder=tmp_path))
    assert engine.dialect.driver == driver
    assert "sslmode" not in engine.url.query


@pytest.mark.parametrize(
    "url",
    [
        "mysql://me:secret@host/db",
        "postgresql+psycopg://me:secret@host/db",
        "me:secret@host",
        "postgres://me:secret@h:x",
    ],
)
def test_other_urls_are_rejected_without_the_password(url: str) -> None:
    with pytest.raises(ValueError, match="sqlite") as refused:
        create_engine(url)
    assert "secret" not in str(refused.value)
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "sqlite:///file:x?mode=memory&uri=true"])
def test_in_memory_database_is_rejected(url: str) -> None:
    with pytest.raises(ValueError, match="names a file"):
        create_engine(url)


async def test_sqlite_is_durable_checks_references_and_makes_its_folder(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/deep/down/parley.db")
    async with engine.connect() as connection:
        values = [
            (await connection.execute(text(f"PRAGMA {name}"))).scalar()
            for name in ("journal_mode", "foreign_keys", "synchronous", "busy_timeout")
        ]
    await engine.dispose()
    assert values == ["wal", 1, 2, 10_000]


async def test_new_sqlite_file_can_be_opened_concurrently(tmp_path: Path) -> None:
    databases = [Database(f"sqlite:///{tmp_path}/parley.db") for _ in range(12)]
    await asyncio.gather(*(database.ping() for database in databases))
    for database in databases:
        await database.close()


async def test_sqlite_reads_during_a_write(tmp_path: Path) -> None:
    path = tmp_path / "parley.db"
    database = Database(f"sqlite:///{path}", patience_s=0)
    await database.ping()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("CREATE TABLE counters (n INTEGER)")
        other.execute("BEGIN IMMEDIATE")
        other.execute("INSERT INTO counters VALUES (1)")
        async with database.read() as session:
            assert (await session.execute(text("SELECT count(*) FROM counters"))).scalar() == 0
    await database.close()


async def test_sqlite_writers_wait_for_each_other(tmp_path: Path) -> None:
    """Writers read first: without the lock at BEGIN, updates would fail or be lost."""
    databases = [Database(f"sqlite:///{tmp_path}/parley.db") for _ in range(3)]
    async with databases[0].write() as session:
        await session.execute(text("CREATE TABLE counters (n INTEGER)"))
        await session.execute(text("INSERT INTO counters VALUES (0)"))

    async def count_up(database: Database) -> None:
        async with database.write() as session:
            n = (await session.execute(text("SELECT n FROM counters"))).scalar()
            await session.execute(text("UPDATE counters SET n = :n"), {"n": (n or 0) + 1})

    await asyncio.gather(*(count_up(database) for database in databases * 10))
    async with databases[0].read() as session:
        assert (await session.execute(text("SELECT n FROM counters"))).scalar() == 30
    for database in databases:
        await database.close()
