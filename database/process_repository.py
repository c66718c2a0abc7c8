"""Statements on the processes that share a PostgreSQL database. The caller's session ends the transaction.

All times are the database's own: the clocks of several machines differ.
"""

from sqlalchemy import delete, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from database.models import Process

NOW = func.extract("epoch", func.clock_timestamp())


class ProcessRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def beat(self, name: str) -> None:
        """Shows that the process is alive."""
        statement = text(
            "INSERT INTO processes (name, seen_at) VALUES (:name, extract(epoch FROM clock_timestamp()))"
            " ON CONFLICT (name) DO UPDATE SET seen_at = excluded.seen_at"
        )
        await self._session.execute(statement, {"name": name})

    async def silent(self, seconds: float) -> set[str]:
        """Names of those that were alive once, and have shown nothing for so long."""
        query = select(Process.name).where(Process.seen_at < NOW - seconds)
        return set((await self._session.scalars(query)).all())

    async def num_alive(self, seconds: float) -> int:
        query = select(func.count()).select_from(Process).where(Process.seen_at >= NOW - seconds)
        return await self._session.scalar(query) or 0

    async def forget(self, seconds: float) -> None:
        """Removes those that have been silent for so long."""
        await self._session.execute(delete(Process).where(Process.seen_at < NOW - seconds))

    async def leave(self, name: str) -> None:
        await self._session.execute(delete(Process).where(Process.name == name))
