"""Statements on the events of background streams. The caller's session ends the transaction."""

from collections.abc import Sequence

from sqlalchemy import delete, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from database.models import StreamBatch

MAX_BATCHES = 64  # read at once

ADD = text(
    "INSERT INTO stream_batches (turn_id, number, events, pieces) VALUES (:turn_id, :number, :events, :pieces)"
    " ON CONFLICT (turn_id, number) DO UPDATE SET events = excluded.events, pieces = excluded.pieces"
)


class StreamRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, batches: Sequence[StreamBatch]) -> None:
        """Idempotent: a retry replaces the batch."""
        rows = [
            {"turn_id": each.turn_id, "number": each.number, "events": each.events, "pieces": each.pieces}
            for each in batches
        ]
        if rows:
            await (await self._session.connection()).execute(ADD, rows)

    async def after(self, turn_id: str, number: int) -> Sequence[str]:
        """The oldest batches with events after `number`; their first events may be older."""
        query = select(StreamBatch.events).where(StreamBatch.turn_id == turn_id, StreamBatch.number > number)
        return (await self._session.scalars(query.order_by(StreamBatch.number).limit(MAX_BATCHES))).all()

    async def pieces(self, turn_id: str) -> Sequence[str]:
        """The pieces of all batches that have some, oldest first."""
        query = select(StreamBatch.pieces).where(StreamBatch.turn_id == turn_id, StreamBatch.pieces.is_not(None))
        return [each for each in (await self._session.scalars(query.order_by(StreamBatch.number))).all() if each]

    async def last(self, turn_id: str) -> str | None:
        query = select(StreamBatch.events).where(StreamBatch.turn_id == turn_id)
        return await self._session.scalar(query.order_by(StreamBatch.number.desc()).limit(1))

    async def delete(self, turn_id: str) -> None:
        await self._session.execute(delete(StreamBatch).where(StreamBatch.turn_id == turn_id))
