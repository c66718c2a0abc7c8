"""Every statement about turns. The caller's session decides where a transaction ends."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, bindparam, delete, literal_column, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import load_only

from database.item_repository import Order
from database.json_text import json_text
from database.models import CANCELLED, IN_PROGRESS, QUEUED, RUNNING, Turn

# spelt out as in the partial indexes: only then both databases see that those answer
IS_STORED: ColumnElement[bool] = literal_column("turns.stored")
IS_RUNNING: ColumnElement[bool] = literal_column(f"({RUNNING})")


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a turn ended."""

    status: str
    said: list[list[dict[str, Any]]]  # by choice: what becomes items
    choices: list[dict[str, Any]]
    usage: dict[str, int] | None
    error: dict[str, Any] | None = None


class TurnRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, turn: Turn) -> None:
        self._session.add(turn)
        await self._session.flush()

    async def get(self, turn_id: str, owner: str, kind: str | None = None) -> Turn | None:
        query = select(Turn).where(Turn.id == turn_id, Turn.owner == owner)
        return await self._session.scalar(query.where(Turn.kind == kind) if kind is not None else query)

    async def page(
        self,
        owner: str,
        kind: str,
        *,
        order: Order,
        limit: int,
        after: Turn | None = None,
        model: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> Sequence[Turn]:
        """Of the stored ones, those that are over."""
        query = select(Turn).where(Turn.owner == owner, Turn.kind == kind, IS_STORED, Turn.completed_at.is_not(None))
        if model is not None:
            query = query.where(Turn.model == model)
        for key, value in (metadata or {}).items():
            query = query.where(json_text(Turn.metadata_, key) == value)
        place = tuple_(Turn.created_at, Turn.id)
        if after is not None:
            mark = tuple_(after.created_at, after.id)
            query = query.where(place > mark if order == "asc" else place < mark)
        by = (Turn.created_at, Turn.id) if order == "asc" else (Turn.created_at.desc(), Turn.id.desc())
        return (await self._session.scalars(query.order_by(*by).limit(limit))).all()

    async def admit(
        self, turn_id: str, *, model: str, fingerprint: str, request: Mapping[str, Any], now: float
    ) -> bool:
        """Whether it was still waiting."""
        waiting = update(Turn).where(Turn.id == turn_id, Turn.status == QUEUED)
        admitted = waiting.values(
            status=IN_PROGRESS, model=model, fingerprint=fingerprint, request=dict(request), updated_at=now
        )
        return await self._session.scalar(admitted.returning(Turn.id)) is not None

    async def status(self, turn_ids: Collection[str]) -> dict[str, str]:
        """Of those that there are."""
        rows = await self._session.execute(select(Turn.id, Turn.status).where(Turn.id.in_(turn_ids)))
        return {each.id: each.status for each in rows}

    async def running_in(self, conversation_id: str) -> Turn | None:
        query = select(Turn).where(Turn.conversation_id == conversation_id, IS_RUNNING)
        return await self._session.scalar(query.limit(1))

    async def some(self, turn_ids: Collection[str]) -> Sequence[Turn]:
        return (await self._session.scalars(select(Turn).where(Turn.id.in_(turn_ids)))).all()

    async def of_conversation(self, conversation_id: str) -> Sequence[Turn]:
        return (await self._session.scalars(select(Turn).where(Turn.conversation_id == conversation_id))).all()

    async def checkpoint(self, said: Mapping[str, object], writer: str, now: float) -> None:
        """What was said so far, by turn; says by the way that the writer is alive."""
        statement = (
            update(Turn)
            .where(Turn.id == bindparam("turn"), Turn.writer == writer)
            .values(said=bindparam("so_far"), updated_at=now)
        )
        # in the order of ids, so that two processes never wait for each other
        rows = [{"turn": turn, "so_far": said[turn]} for turn in sorted(said)]
        await (await self._session.connection()).execute(statement, rows)

    async def mine(self, turn_id: str, writer: str) -> Turn | None:
        """While it is not finished by its writer; also where others have given it up meanwhile, or cancelled it."""
        query = select(Turn).where(Turn.id == turn_id, Turn.writer == writer)
        return await self._session.scalar(query.with_for_update())

    async def finish(self, turn: Turn, outcome: Outcome, now: float) -> None:
        turn.status = CANCELLED if turn.status == CANCELLED else outcome.status
        turn.choices, turn.usage, turn.error = outcome.choices, outcome.usage, outcome.error
        turn.said, turn.writer = None, None
        turn.updated_at = turn.completed_at = now
        await self._session.flush()

    async def running(self) -> Sequence[Turn]:
        """Who writes what, and when that was heard last."""
        query = select(Turn).where(IS_RUNNING).options(load_only(Turn.id, Turn.writer, Turn.updated_at))
        return (await self._session.scalars(query)).all()

    async def still_running(self, turn_ids: Collection[str]) -> Sequence[Turn]:
        """Locked; in the order of ids, so that two processes never wait for each other."""
        query = select(Turn).where(IS_RUNNING, Turn.id.in_(turn_ids)).order_by(Turn.id)
        return (await self._session.scalars(query.with_for_update())).all()

    async def give_up(self, turn: Turn, status: str, now: float) -> None:
        """The writer stays noted: if it lives, it has the last word."""
        turn.status, turn.said = status, None
        turn.updated_at = turn.completed_at = now
        await self._session.flush()

    async def stopped(self, turn_ids: Collection[str]) -> set[str]:
        """Those of them that somebody has cancelled or deleted."""
        query = select(Turn.id).where(Turn.id.in_(turn_ids), Turn.status != CANCELLED)
        return set(turn_ids) - set((await self._session.scalars(query)).all())

    async def delete(self, turn_id: str) -> None:
        await self._session.execute(delete(Turn).where(Turn.id == turn_id))
