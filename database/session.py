"""Sessions that live as long as a statement needs them, and what it looks like when there is no database."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext

import anyio
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker

from database.engine import WRITE, create_engine
from database.erasure import Deletions, empty_log, merge

# PostgreSQL's classes of "not now": connection, authorization, no such database, rolled back, resources, shutting down
NOT_NOW = ("08", "28", "3D", "40", "53", "57")


class Database:
    def __init__(self, url: str, *, patience_s: float = 10.0) -> None:
        self._engine = create_engine(url, patience_s=patience_s)
        self._readers = async_sessionmaker(_at_one_moment(self._engine), expire_on_commit=False)
        writing = self._engine.execution_options(**{WRITE: True})
        self._writers = async_sessionmaker(writing, expire_on_commit=False)
        self._turnstile = _turnstile(self._engine.dialect.name)
        self._deletions = Deletions(self._engine)

    @asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        async with self._readers() as session:
            yield session

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        """Commits at the end; what was written is durable then. Never to be held while something else is awaited."""
        async with self._turnstile, self._writers.begin() as session:
            yield session

    async def ping(self) -> None:
        async with self.read() as session:
            await session.execute(text("SELECT 1"))

    async def erase(self) -> bool:
        """A step on which what was deleted leaves the files, too; whether there is more to do."""
        deletions, seen = self._deletions, self._deletions.count
        if deletions.erased < seen:
            async with self.write() as session:
                is_merged = await merge(session)
            async with self._turnstile:
                is_empty = await empty_log(self._engine.url.database or "")
            deletions.erased = seen if is_merged and is_empty else deletions.erased
        return deletions.erased < deletions.count

    async def close(self) -> None:
        await self._engine.dispose()


def _at_one_moment(engine: AsyncEngine) -> AsyncEngine:
    """A transaction sees the same from its first statement to its last, as SQLite's do by themselves."""
    if engine.dialect.name == "sqlite":
        return engine
    return engine.execution_options(isolation_level="REPEATABLE READ")


def _turnstile(dialect: str) -> AbstractAsyncContextManager[None]:
    """SQLite has one writer. Writers of one process queue here, first come first served; SQLite itself would poll."""
    return anyio.Lock() if dialect == "sqlite" else nullcontext()


def is_away(error: BaseException) -> bool:
    """Whether the database cannot serve at the moment, as opposed to: was asked something wrong."""
    match error:
        case OperationalError() | InterfaceError() | PoolTimeout() | OSError():  # OSError: also TimeoutError
            return True
        case DBAPIError():
            state = getattr(error.orig, "sqlstate", None) or ""
            return error.connection_invalidated or state.startswith(NOT_NOW)
        case _:
            return False
