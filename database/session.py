"""Short-lived sessions, and the classification of database errors as outages."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

import anyio
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from database.engine import WRITE, create_engine
from database.erasure import Deletions, empty_log, merge

# PostgreSQL's error classes: connection, a transaction idle for too long, authorization, no such database, rolled back,
# resources, shutting down
OUTAGE_CLASSES = ("08", "25P03", "28", "3D", "40", "53", "57")


class Database:
    def __init__(self, url: str, *, patience_s: float = 10.0) -> None:
        self._engine = create_engine(url, patience_s=patience_s)
        self._readers = async_sessionmaker(_repeatable_read(self._engine), expire_on_commit=False)
        writing = self._engine.execution_options(**{WRITE: True})
        self._writers = async_sessionmaker(writing, expire_on_commit=False)
        self._write_lock = _write_lock(self._engine.dialect.name)
        self._deletions = Deletions(self._engine)

    @property
    def is_shared(self) -> bool:
        """Whether processes of several machines may use it."""
        return self._engine.dialect.name != "sqlite"

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        async with self._readers() as session:
            yield session

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """Commits on exit; the writes are durable then. Await nothing but statements inside."""
        async with self._write_lock, self._writers.begin() as session:
            yield session

    async def ping(self) -> None:
        async with self.read() as session:
            await session.execute(text("SELECT 1"))

    async def erase(self) -> bool:
        """One step of erasing deleted rows from the files; returns whether more steps are needed."""
        deletions, seen = self._deletions, self._deletions.count
        if deletions.erased < seen:
            async with self.write() as session:
                is_merged = await merge(session)
            async with self._write_lock:
                is_empty = await empty_log(self._engine.url.database or "")
            deletions.erased = seen if is_merged and is_empty else deletions.erased
        return deletions.erased < deletions.count

    async def close(self) -> None:
        await self._engine.dispose()


def _repeatable_read(engine: AsyncEngine) -> AsyncEngine:
    """Each transaction reads one snapshot, as SQLite's transactions always do."""
    if engine.dialect.name == "sqlite":
        return engine
    return engine.execution_options(isolation_level="REPEATABLE READ")


def _write_lock(dialect: str) -> AbstractAsyncContextManager[None]:
    """SQLite has one writer. Writers of one process queue here in order; SQLite itself would poll."""
    return anyio.Lock() if dialect == "sqlite" else nullcontext()


def is_outage(error: BaseException) -> bool:
    """Whether an error means that the database is unavailable, and not that a statement is wrong."""
    match error:
        case OperationalError() | InterfaceError() | PoolTimeout() | OSError():  # OSError: also TimeoutError
            return True
        case DBAPIError():
            state = getattr(error.orig, "sqlstate", None) or ""
            return error.connection_invalidated or state.startswith(OUTAGE_CLASSES)
        case _:
            return False
