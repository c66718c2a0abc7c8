"""Statements on files. The caller's session ends the transaction."""

from collections.abc import Sequence
from typing import Literal

from sqlalchemy import ColumnElement, delete, func, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from database.file_models import DELETED, PROCESSED, UPLOADING, File


class FileRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, file: File) -> None:
        self._session.add(file)
        await self._session.flush()

    async def get(self, file_id: str, owner: str, *, now: float) -> File | None:
        """One that can be read."""
        return await self._session.scalar(select(File).where(File.id == file_id, File.owner == owner, _is_there(now)))

    async def page(
        self,
        owner: str,
        *,
        now: float,
        limit: int,
        order: Literal["asc", "desc"] = "desc",
        after: File | None = None,
        purpose: str | None = None,
    ) -> Sequence[File]:
        place = tuple_(File.created_at, File.id)
        query = select(File).where(File.owner == owner, _is_there(now))
        if purpose is not None:
            query = query.where(File.purpose == purpose)
        if after is not None:
            start = tuple_(after.created_at, after.id)
            query = query.where(place > start if order == "asc" else place < start)
        columns = (File.created_at, File.id)
        query = query.order_by(*(column.asc() if order == "asc" else column.desc() for column in columns))
        return (await self._session.scalars(query.limit(limit))).all()

    async def total_bytes(self, owner: str) -> int:
        """Of all rows, those too whose contents are on their way in or out."""
        return int(await self._session.scalar(select(func.sum(File.bytes)).where(File.owner == owner)) or 0)

    async def finish_upload(self, file_id: str, expires_after_s: int | None) -> bool:
        """It expires so long after it was created, however long its contents took."""
        expires_at = None if expires_after_s is None else File.created_at + expires_after_s
        statement = update(File).where(File.id == file_id, File.status == UPLOADING)
        found = statement.values(status=PROCESSED, expires_at=expires_at).returning(File.id)
        return await self._session.scalar(found) is not None

    async def mark_deleted(self, file_id: str, owner: str, *, now: float) -> bool:
        """Whether there was one that could be read."""
        statement = update(File).where(File.id == file_id, File.owner == owner, _is_there(now))
        found = statement.values(status=DELETED, expires_at=now).returning(File.id)
        return await self._session.scalar(found) is not None

    async def expired(self, now: float, limit: int) -> Sequence[str]:
        query = select(File.id).where(File.expires_at <= now).order_by(File.expires_at).limit(limit)
        return (await self._session.scalars(query)).all()

    async def remove(self, file_ids: Sequence[str]) -> None:
        """Once their contents are gone."""
        await self._session.execute(delete(File).where(File.id.in_(file_ids)))


def _is_there(now: float) -> ColumnElement[bool]:
    return (File.status == PROCESSED) & (File.expires_at.is_(None) | (File.expires_at > now))
