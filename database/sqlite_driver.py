"""aiosqlite with one change of threads for a statement, where it takes three or four: a cursor is opened, asked, read
to its end and closed in one go. Each change costs, and waits for a core.
"""

import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import aiosqlite

from database.private_file import make_private


async def connect(path: str, patience_s: float) -> "Connection":
    connection = Connection(partial(_open, path, patience_s), iter_chunk_size=64)
    connection._thread.daemon = True  # as SQLAlchemy has it: no process waits for it
    await connection
    return connection


def _open(path: str, patience_s: float) -> sqlite3.Connection:
    make_private(path)
    # isolation_level None: the driver starts no transactions of its own, engine.py does
    return sqlite3.connect(path, timeout=patience_s, isolation_level=None, check_same_thread=False)


class Connection(aiosqlite.Connection):
    def cursor(self) -> "Cursor":  # type: ignore[override]  # as much of one as SQLAlchemy asks for
        return Cursor(self)

    async def ask(self, sql: str, parameters: Iterable[Any], *, many: bool = False) -> "Answer":
        answer = await self._execute(_answer, self._conn, sql, parameters, many)  # type: ignore[no-untyped-call]
        return cast("Answer", answer)


@dataclass(frozen=True, slots=True)
class Answer:
    rows: Sequence[Any] = ()
    description: Any = None
    rowcount: int = -1
    lastrowid: int | None = None


def _answer(connection: sqlite3.Connection, sql: str, parameters: Any, many: bool) -> Answer:
    cursor = connection.cursor()
    try:
        cursor.executemany(sql, parameters) if many else cursor.execute(sql, parameters)
        rows = cursor.fetchall() if cursor.description else ()
        return Answer(rows, cursor.description, cursor.rowcount, cursor.lastrowid)
    finally:
        cursor.close()


class Cursor:
    arraysize = 1

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._answer = Answer()

    async def __aenter__(self) -> "Cursor":
        return self

    async def execute(self, sql: str, parameters: Iterable[Any] = ()) -> None:
        self._answer = await self._connection.ask(sql, parameters)

    async def executemany(self, sql: str, parameters: Iterable[Any]) -> None:
        self._answer = await self._connection.ask(sql, parameters, many=True)

    async def fetchall(self) -> Sequence[Any]:
        return self._answer.rows

    async def close(self) -> None:
        """It is."""

    @property
    def description(self) -> Any:
        return self._answer.description

    @property
    def rowcount(self) -> int:
        return self._answer.rowcount

    @property
    def lastrowid(self) -> int | None:
        return self._answer.lastrowid
