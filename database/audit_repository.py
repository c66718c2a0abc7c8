"""Statements on the audit log. The caller's session ends the transaction."""

from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncSession

from database.admin_models import AuditEvent


class AuditRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    def add(self, event: AuditEvent) -> None:
        """Written when the transaction ends."""
        self._session.add(event)

    async def events(self, *, since: float = 0, limit: int | None = None) -> Sequence[AuditEvent]:
        """Oldest first; with a limit, the newest of them."""
        query = select(AuditEvent).where(AuditEvent.at >= since).order_by(AuditEvent.seq.desc())
        return list(reversed((await self._session.scalars(query.limit(limit))).all()))

    async def delete_before(self, at: float) -> None:
        await self._session.execute(delete(AuditEvent).where(AuditEvent.at < at))
