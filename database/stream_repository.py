"""Statements on the events of background streams. The caller's session ends the transaction."""

from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from database.models import StreamBatch

MAX_BATCHES = 64  # read at once


class StreamRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, turn_id: str, number: int, events: str) -> None:
        """Idempotent: a retry replaces the batch."""
        await self._session.merge(StreamBatch(turn_id=turn_id, number=number, events=events))
        await self._session.flush()

    async def after(self, turn_id: str, number: int) -> Sequence[str]:
        """The oldest batches with events after `number`; their first events may be older."""
        query = select(StreamBatch.events).where(StreamBatch.turn_id == turn_id, StreamBatch.number > number)
        return (await self._session.scalars(query.order_by(StreamBatch.number).limit(MAX_BATCHES))).all()

    async def last(self, turn_id: str) -> str | None:
        query = select(StreamBatch.events).where(StreamBatch.turn_id == turn_id)
        return await self._session.scalar(query.order_by(StreamBatch.number.desc()).limit(1))

    async def delete(self, turn_id: str) -> None:
        await self._session.execute(delete(StreamBatch).where(StreamBatch.turn_id == turn_id))
