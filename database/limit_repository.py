"""Statements on the states of limits. The caller's session ends the transaction."""

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import bindparam, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from database.usage_models import LimitState

ADD = text("INSERT INTO limit_states (subject, state) VALUES (:subject, 'null') ON CONFLICT DO NOTHING")
SAVE = update(LimitState).where(LimitState.subject == bindparam("of")).values(state=bindparam("new_state"))


class LimitRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def lock(self, subjects: Sequence[str]) -> dict[str, Any]:
        """Their states; in order, so that two processes cannot deadlock."""
        query = select(LimitState.subject, LimitState.state).where(LimitState.subject.in_(subjects))
        query = query.order_by(LimitState.subject).with_for_update()
        rows = (await self._session.execute(query)).all()
        if len(rows) < len(subjects):
            await self._session.execute(ADD, [{"subject": each} for each in subjects])
            rows = (await self._session.execute(query)).all()
        return {row[0]: row[1] for row in rows}

    async def save(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        rows = [{"of": subject, "new_state": dict(state)} for subject, state in states.items()]
        await (await self._session.connection()).execute(SAVE, rows)
