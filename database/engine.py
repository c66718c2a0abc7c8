"""Creates engines: async drivers by URL, pools, and the settings of new connections."""

import json
import sqlite3
from functools import partial
from pathlib import Path
from typing import Any

import aiosqlite
import orjson
from sqlalchemy import Connection, event, make_url
from sqlalchemy.engine import URL, AdaptedConnection
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from database.sqlite_driver import connect

# max_overflow is 0 below: overflow connections would be opened for one statement each
WRITE = "parley_write"  # execution option of transactions that write

DRIVERS = {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+aiosqlite": "sqlite+aiosqlite",
    "postgres": "postgresql+asyncpg",
    "postgresql": "postgresql+asyncpg",
    "postgresql+asyncpg": "postgresql+asyncpg",
}


def _to_json(value: object) -> str:
    """orjson is several times as fast as `json`, which blocks the event loop; `json` encodes what orjson rejects."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # an integer beyond 64 bits, half of a surrogate pair
        return json.dumps(value)


def _from_json(text: str) -> Any:
    try:
        return orjson.loads(text)
    except ValueError:
        return json.loads(text)


JSON: dict[str, Any] = {"json_serializer": _to_json, "json_deserializer": _from_json}


def create_engine(url: str, *, patience_s: float = 10.0) -> AsyncEngine:
    """`patience_s`: how long a statement may wait for a lock or an answer before it fails."""
    target = _with_async_driver(parse_url(url))
    if target.get_backend_name() == "sqlite":
        return _sqlite(target, patience_s)
    return _postgresql(target, patience_s)


def parse_url(url: str) -> URL:
    try:
        return make_url(url)
    except (ArgumentError, ValueError):  # the message may quote the URL with its password
        raise ValueError("The database URL cannot be read, expected sqlite:///FILE or postgresql://…") from None


def _with_async_driver(url: URL) -> URL:
    if url.drivername not in DRIVERS:
        raise ValueError(f"No database of kind '{url.drivername}', expected sqlite or postgresql")
    return url.set(drivername=DRIVERS[url.drivername])


def _sqlite(url: URL, patience_s: float) -> AsyncEngine:
    if not url.database or url.database.startswith((":memory:", "file:")):
        raise ValueError("An SQLite URL names a file here: sqlite:///FILE")
    Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    open_file = partial(connect, url.database, patience_s)
    options = {"pool_size": 10, "max_overflow": 0, "hide_parameters": True, **JSON}
    engine = create_async_engine(url, async_creator=open_file, **options)
    event.listen(engine.sync_engine, "connect", _prepare)
    event.listen(engine.sync_engine, "begin", _begin)
    return engine


def _postgresql(url: URL, patience_s: float) -> AsyncEngine:
    options: dict[str, object] = {"timeout": 5.0, "command_timeout": patience_s}
    if sslmode := url.query.get("sslmode"):  # libpq's name; asyncpg calls it `ssl`
        url, options["ssl"] = url.difference_update_query(["sslmode"]), sslmode
    engine = create_async_engine(
        url,
        connect_args=options,
        pool_size=20,
        max_overflow=0,
        pool_timeout=patience_s,
        pool_pre_ping=True,  # a restarted server costs a reconnect, not a failed request
        pool_recycle=1800,
        hide_parameters=True,  # errors are logged, prompts are not
        **JSON,
    )
    event.listen(engine.sync_engine, "connect", partial(_limit_idle_transactions, patience_s / 2))
    return engine


def _limit_idle_transactions(seconds: float, connection: AdaptedConnection, _record: ConnectionPoolEntry) -> None:
    """A process that stands still in a transaction (a paused machine, a lost network) keeps its locks: the server ends
    the transaction before the others' statements fail. By a statement: PgBouncer refuses unknown start parameters."""
    milliseconds = round(seconds * 1000)
    connection.run_async(lambda each: each.execute(f"SET idle_in_transaction_session_timeout = {milliseconds}"))


def _prepare(connection: AdaptedConnection, _record: ConnectionPoolEntry) -> None:
    connection.run_async(_set_pragmas)


async def _set_pragmas(connection: aiosqlite.Connection) -> None:
    """WAL: readers and the writer do not block each other. FULL: commits survive a power cut. secure_delete: deleted
    content is overwritten."""
    await connection.execute_fetchall("PRAGMA foreign_keys=ON")
    await connection.execute_fetchall("PRAGMA secure_delete=ON")
    await connection.execute_fetchall("PRAGMA synchronous=FULL")
    while not await _has_set_wal(connection):
        # switching to WAL fails at once if two processes try it together; a transaction waits for the lock
        await connection.execute_fetchall("BEGIN EXCLUSIVE")
        await connection.execute_fetchall("COMMIT")


async def _has_set_wal(connection: aiosqlite.Connection) -> bool:
    """On file systems without shared memory SQLite keeps its rollback journal and reports no error."""
    try:
        await connection.execute_fetchall("PRAGMA journal_mode=WAL")
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:  # the upper bits are the extended code
            raise
        return False
    return True


def _begin(connection: Connection) -> None:
    """A writer locks before it reads: upgrading a read lock fails at once instead of waiting."""
    writes = connection.get_execution_options().get(WRITE, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
