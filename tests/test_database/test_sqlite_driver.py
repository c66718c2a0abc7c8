import sqlite3
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path

import pytest

from database.sqlite_driver import Connection, connect


@pytest.fixture
async def connection(tmp_path: Path) -> AsyncIterator[Connection]:
    connection = await connect(str(tmp_path / "a.db"), 1.0)
    await connection.cursor().execute("CREATE TABLE t (id INTEGER PRIMARY KEY, name TEXT UNIQUE)")
    yield connection
    await connection.close()


async def test_cursor_has_all_results(connection: Connection) -> None:
    cursor = connection.cursor()
    await cursor.executemany("INSERT INTO t (name) VALUES (?)", [("a",), ("b",), ("c",)])
    assert (cursor.rowcount, cursor.description, await cursor.fetchall()) == (3, None, ())
    await cursor.execute("INSERT INTO t (name) VALUES (?)", ("d",))
    assert cursor.lastrowid == 4
    await cursor.execute("UPDATE t SET name = name || '!' WHERE id > ? RETURNING id, name", (2,))
    assert [column[0] for column in cursor.description] == ["id", "name"]
    assert (cursor.rowcount, await cursor.fetchall()) == (2, [(3, "c!"), (4, "d!")])
    await cursor.execute("DELETE FROM t")
    assert (cursor.rowcount, await cursor.fetchall()) == (4, ())


async def test_error_is_raised_and_releases_the_connection(connection: Connection) -> None:
    cursor = connection.cursor()
    with pytest.raises(sqlite3.IntegrityError):
        await cursor.executemany("INSERT INTO t (name) VALUES (?)", [("a",), ("a",)])
    with pytest.raises(sqlite3.OperationalError):
        await cursor.execute("SELECT nothing")
    await cursor.execute("DROP TABLE t")  # an open cursor would keep the table locked


class Counting(Connection):
    changes = 0

    async def _execute(self, fn: Callable[..., object], *args: object, **kwargs: object) -> object:
        self.changes += 1
        return await super()._execute(fn, *args, **kwargs)  # type: ignore[no-untyped-call]


async def test_statement_is_one_thread_hop(tmp_path: Path) -> None:
    connection = await Counting(partial(sqlite3.connect, tmp_path / "a.db"), 64)
    cursor = connection.cursor()
    await cursor.__aenter__()
    await cursor.execute("SELECT 1 UNION SELECT 2")
    assert await cursor.fetchall() == [(1,), (2,)]
    await cursor.close()
    assert connection.changes == 1
    await connection.close()
