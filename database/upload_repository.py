"""Statements on uploads in parts. The caller's session ends the transaction."""

from collections.abc import Sequence

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from database.upload_models import PENDING, Upload, UploadPart


class UploadRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, row: Upload | UploadPart) -> None:
        self._session.add(row)
        await self._session.flush()

    async def lock(self, upload_id: str, owner: str) -> Upload | None:
        query = select(Upload).where(Upload.id == upload_id, Upload.owner == owner)
        return await self._session.scalar(query.with_for_update())

    async def parts(self, upload_id: str) -> Sequence[UploadPart]:
        return (await self._session.scalars(select(UploadPart).where(UploadPart.upload_id == upload_id))).all()

    async def pending_bytes(self, owner: str, now: float) -> int:
        """That unfinished uploads will have."""
        is_pending = (Upload.status == PENDING) & (Upload.expires_at > now)
        query = select(func.sum(Upload.bytes)).where(Upload.owner == owner, is_pending)
        return int(await self._session.scalar(query) or 0)

    async def unneeded_parts(self, now: float, limit: int) -> Sequence[str]:
        """Of uploads that have expired. Of those that have ended, a crash may have left some until then."""
        query = select(UploadPart.id).join(Upload, Upload.id == UploadPart.upload_id).where(Upload.expires_at <= now)
        return (await self._session.scalars(query.limit(limit))).all()

    async def remove_parts(self, part_ids: Sequence[str]) -> None:
        """Once their contents are gone."""
        await self._session.execute(delete(UploadPart).where(UploadPart.id.in_(part_ids)))

    async def forget(self, before: float) -> None:
        """Uploads that have expired before that time, and have no parts any more."""
        has_parts = select(UploadPart.id).where(UploadPart.upload_id == Upload.id).exists()
        await self._session.execute(delete(Upload).where(Upload.expires_at < before, ~has_parts))
