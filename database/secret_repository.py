"""Statements on the server's own secrets. The caller's session ends the transaction."""

from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from database.models import Secret


class SecretRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def get(self, name: str) -> str | None:
        return await self._session.scalar(select(Secret.value).where(Secret.name == name))

    async def add(self, name: str, value: str) -> None:
        """Keeps a value that another process has added."""
        statement = text("INSERT INTO secrets (name, value) VALUES (:name, :value) ON CONFLICT DO NOTHING")
        await self._session.execute(statement, {"name": name, "value": value})
