"""Every statement about the events of streams. The caller's session decides where a transaction ends."""

from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from database.models import StreamBatch

BATCHES = 64  # read at once


class StreamRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, turn_id: str, number: int, events: str) -> None:
        """Also once more."""
        await self._session.merge(StreamBatch(turn_id=turn_id, number=number, events=events))
        await self._session.flush()

    async def after(self, turn_id: str, number: int) -> Sequence[str]:
        """The oldest batches that have something after it; their first events may be older."""
        query = select(StreamBatch.events).where(StreamBatch.turn_id == turn_id, StreamBatch.number > number)
        return (await self._session.scalars(query.order_by(StreamBatch.number).limit(BATCHES))).all()

    async def last(self, turn_id: str) -> str | None:
        query = select(StreamBatch.events).where(StreamBatch.turn_id == turn_id)
        return await self._session.scalar(query.order_by(StreamBatch.number.desc()).limit(1))

    async def drop(self, turn_id: str) -> None:
        await self._session.execute(delete(StreamBatch).where(StreamBatch.turn_id == turn_id))
