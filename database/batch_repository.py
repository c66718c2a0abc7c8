"""Statements on batches. The caller's session ends the transaction."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import delete, func, select, text, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from database.batch_models import UNFINISHED, Batch, BatchResult
from database.bulk import insert_all

IS_UNFINISHED = text(UNFINISHED)


@dataclass(frozen=True, slots=True)
class Unfinished:
    id: str
    owner: str
    writer: str | None


class BatchRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, batch: Batch) -> None:
        self._session.add(batch)
        await self._session.flush()

    async def get(self, batch_id: str, owner: str, *, lock: bool = False) -> Batch | None:
        query = select(Batch).where(Batch.id == batch_id, Batch.owner == owner)
        return await self._session.scalar(query.with_for_update() if lock else query)

    async def page(self, owner: str, *, limit: int, after: Batch | None = None) -> Sequence[Batch]:
        """Newest first."""
        query = select(Batch).where(Batch.owner == owner)
        if after is not None:
            query = query.where(tuple_(Batch.created_at, Batch.id) < tuple_(after.created_at, after.id))
        query = query.order_by(Batch.created_at.desc(), Batch.id.desc())
        return (await self._session.scalars(query.limit(limit))).all()

    async def num_unfinished(self, owner: str) -> int:
        query = select(func.count()).select_from(Batch).where(Batch.owner == owner, IS_UNFINISHED)
        return await self._session.scalar(query) or 0

    async def unfinished(self, limit: int) -> list[Unfinished]:
        """The oldest first."""
        query = select(Batch.id, Batch.owner, Batch.writer).where(IS_UNFINISHED).order_by(Batch.created_at)
        return [
            Unfinished(each.id, each.owner, each.writer) for each in await self._session.execute(query.limit(limit))
        ]

    async def claim(self, batch: Unfinished, writer: str) -> Batch | None:
        """None: another process was faster, or is claiming it."""
        query = select(Batch).where(
            Batch.id == batch.id, IS_UNFINISHED, Batch.writer.is_not_distinct_from(batch.writer)
        )
        found = await self._session.scalar(query.with_for_update(skip_locked=True))
        if found is not None:
            found.attempts += found.writer is not None
            found.writer = writer
            await self._session.flush()
        return found

    async def lock_own(self, batch_id: str, writer: str) -> Batch | None:
        """One that this process still runs; None: it was claimed by another."""
        query = select(Batch).where(Batch.id == batch_id, Batch.writer == writer, IS_UNFINISHED)
        return await self._session.scalar(query.with_for_update())

    async def release(self, writer: str) -> None:
        """Leaves what this process runs to whoever claims it."""
        await self._session.execute(update(Batch).where(Batch.writer == writer, IS_UNFINISHED).values(writer=None))

    async def status(self, batch_id: str, writer: str) -> str | None:
        query = select(Batch.status).where(Batch.id == batch_id, Batch.writer == writer, IS_UNFINISHED)
        return await self._session.scalar(query)

    # --- results ---

    async def add_results(self, results: Sequence[BatchResult]) -> None:
        await insert_all(self._session, results)

    async def existing(self, batch_id: str, lines: Collection[int]) -> set[int]:
        query = select(BatchResult.line).where(BatchResult.batch_id == batch_id, BatchResult.line.in_(lines))
        return set((await self._session.scalars(query)).all())

    async def lines(self, batch_id: str) -> set[int]:
        """Those that have a result."""
        return set(
            (await self._session.scalars(select(BatchResult.line).where(BatchResult.batch_id == batch_id))).all()
        )

    async def results(self, batch_id: str, *, after: int, limit: int) -> Sequence[BatchResult]:
        query = select(BatchResult).where(BatchResult.batch_id == batch_id, BatchResult.line > after)
        return (await self._session.scalars(query.order_by(BatchResult.line).limit(limit))).all()

    async def delete_results(self, batch_id: str) -> None:
        await self._session.execute(delete(BatchResult).where(BatchResult.batch_id == batch_id))
