"""Statements on idempotency keys. The caller's session ends the transaction."""

from collections.abc import Sequence

from sqlalchemy import delete, select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from database.bulk import insert_all
from database.models import IdempotencyKey


class IdempotencyRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def get(self, owner: str, key: str) -> IdempotencyKey | None:
        query = select(IdempotencyKey).where(IdempotencyKey.owner == owner, IdempotencyKey.key == key)
        return await self._session.scalar(query)

    async def add(self, keys: Sequence[IdempotencyKey]) -> None:
        await insert_all(self._session, keys)

    async def delete_expired(self, before: float) -> None:
        """Skips locked rows: they are being deleted with their conversation."""
        columns = IdempotencyKey.owner, IdempotencyKey.key
        old = select(*columns).where(IdempotencyKey.created_at < before).with_for_update(skip_locked=True)
        await self._session.execute(delete(IdempotencyKey).where(tuple_(*columns).in_(old)))
