"""Statements on turns. The caller's session ends the transaction."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ColumnElement,
    Update,
    bindparam,
    case,
    delete,
    literal_column,
    null,
    select,
    tuple_,
    update,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import load_only

from database.bulk import execute_all, insert_all
from database.item_repository import MAX_VALUES, Order
from database.json_text import json_text
from database.models import CANCELLED, IN_PROGRESS, QUEUED, RUNNING, Turn

# spelled as in the partial indexes: only then do both databases use them
IS_STORED: ColumnElement[bool] = literal_column("turns.stored")
IS_RUNNING: ColumnElement[bool] = literal_column(f"({RUNNING})")
IS_UNCLAIMED: ColumnElement[bool] = Turn.writer.is_(None) & Turn.body.is_not(None)


def _update(*columns: str) -> Update:
    """An update of the turn in parameter `turn_id`; parameters `new_...` are the new values."""
    values: dict[Any, ColumnElement[Any]] = {getattr(Turn, each): bindparam(f"new_{each}") for each in columns}
    return update(Turn).where(Turn.id == bindparam("turn_id")).values(values)


ADMIT = _update("status", "updated_at", "model", "fingerprint", "request")
CHECKPOINT = _update("partial_output", "updated_at").where(Turn.writer == bindparam("by_writer"))
FINISH = _update("choices", "usage", "error", "updated_at", "completed_at").values(
    {
        Turn.status: case((Turn.status == CANCELLED, CANCELLED), else_=bindparam("new_status")),
        Turn.partial_output: null(),
        Turn.body: null(),
        Turn.writer: None,
    }
)


@dataclass(frozen=True, slots=True)
class TurnResult:
    """How a turn ended."""

    status: str
    output: list[list[dict[str, Any]]]  # items by choice
    choices: list[dict[str, Any]]
    usage: dict[str, int] | None
    at: float
    error: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class LockedTurn:
    status: str
    completed_at: float | None


@dataclass(frozen=True, slots=True)
class SharedTurn:
    status: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Unclaimed:
    """A running turn without a writer."""

    id: str
    owner: str


@dataclass(frozen=True, slots=True, eq=False)
class Admission:
    """What becomes known when a queued turn is admitted."""

    turn_id: str
    model: str
    fingerprint: str
    request: Mapping[str, Any]


class TurnRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, turns: Sequence[Turn]) -> None:
        await insert_all(self._session, turns)

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
        """Finished stored turns."""
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

    async def lock_unfinished(self, turn_ids: Collection[str], writer: str) -> dict[str, LockedTurn]:
        """Locks the turns that this writer has not finished, including those that others have force-finished or
        cancelled. Locks in the order of ids, so that two processes cannot deadlock."""
        query = select(Turn.id, Turn.status, Turn.completed_at).where(Turn.id.in_(turn_ids), Turn.writer == writer)
        rows = await self._session.execute(query.order_by(Turn.id).with_for_update())
        return {id: LockedTurn(status, completed_at) for id, status, completed_at in rows}

    async def admit(self, admissions: Sequence[Admission], now: float) -> None:
        admitted = {"new_status": IN_PROGRESS, "new_updated_at": now}
        rows = [
            admitted
            | {"turn_id": each.turn_id, "new_model": each.model, "new_fingerprint": each.fingerprint}
            | {"new_request": dict(each.request)}
            for each in admissions
        ]
        await execute_all(self._session, ADMIT, rows)

    async def status(self, turn_ids: Collection[str]) -> dict[str, str]:
        """Status by id; ids without a turn are left out."""
        found: dict[str, str] = {}
        ids = list(turn_ids)
        for start in range(0, len(ids), MAX_VALUES):
            batch = Turn.id.in_(ids[start : start + MAX_VALUES])
            rows = await self._session.execute(select(Turn.id, Turn.status).where(batch))
            found |= {each.id: each.status for each in rows}
        return found

    async def lock_shared(self, turn_ids: Collection[str]) -> dict[str, SharedTurn]:
        """The turns cannot be deleted or released until the transaction ends."""
        query = select(Turn.id, Turn.status, Turn.attempt).where(Turn.id.in_(turn_ids)).order_by(Turn.id)
        rows = await self._session.execute(query.with_for_update(read=True, key_share=True))
        return {each.id: SharedTurn(each.status, each.attempt) for each in rows}

    async def running_in(self, conversation_id: str) -> Turn | None:
        query = select(Turn).where(Turn.conversation_id == conversation_id, IS_RUNNING)
        return await self._session.scalar(query.limit(1))

    async def get_many(self, turn_ids: Collection[str]) -> Sequence[Turn]:
        return (await self._session.scalars(select(Turn).where(Turn.id.in_(turn_ids)))).all()

    async def of_conversation(self, conversation_id: str) -> Sequence[Turn]:
        return (await self._session.scalars(select(Turn).where(Turn.conversation_id == conversation_id))).all()

    async def checkpoint(self, output: Mapping[str, object], writer: str, now: float) -> None:
        """Saves the output generated so far, by turn id, and shows that the writer is alive."""
        # sorted, so that two processes cannot deadlock
        rows = [
            {"turn_id": turn, "new_partial_output": output[turn], "new_updated_at": now, "by_writer": writer}
            for turn in sorted(output)
        ]
        await execute_all(self._session, CHECKPOINT, rows)

    async def finish(self, results: Mapping[str, TurnResult]) -> None:
        """A cancelled turn stays cancelled."""
        rows = [
            {"turn_id": turn_id, "new_status": each.status, "new_updated_at": each.at, "new_completed_at": each.at}
            | {"new_choices": each.choices, "new_usage": each.usage, "new_error": each.error}
            for turn_id, each in results.items()
        ]
        await execute_all(self._session, FINISH, rows)

    async def running(self) -> Sequence[Turn]:
        """The id, writer and last update of all running turns but those that wait for a writer."""
        query = select(Turn).where(IS_RUNNING, ~IS_UNCLAIMED).options(load_only(Turn.id, Turn.writer, Turn.updated_at))
        return (await self._session.scalars(query)).all()

    async def unclaimed(self, limit: int, before: float) -> list[Unclaimed]:
        """The oldest of the running turns that any process may go on with, since that time."""
        is_old = Turn.updated_at <= before
        query = select(Turn.id, Turn.owner).where(IS_RUNNING, IS_UNCLAIMED, is_old)
        query = query.order_by(Turn.updated_at)
        return [Unclaimed(each.id, each.owner) for each in await self._session.execute(query.limit(limit))]

    async def num_claimed(self) -> Counter[str]:
        """How many running turns of each owner have a writer."""
        query = select(Turn.owner).where(IS_RUNNING, Turn.writer.is_not(None))
        return Counter((await self._session.scalars(query)).all())

    async def claim(self, turn_ids: Collection[str], writer: str, now: float) -> Sequence[Turn]:
        """Those that no other process is claiming."""
        query = select(Turn).where(Turn.id.in_(turn_ids), IS_RUNNING, IS_UNCLAIMED).order_by(Turn.id)
        claimed = (await self._session.scalars(query.with_for_update(skip_locked=True, key_share=True))).all()
        for turn in claimed:
            turn.writer, turn.updated_at = writer, now
        await self._session.flush()
        return claimed

    async def release(self, turn: Turn, now: float) -> None:
        """Leaves a locked turn to whoever claims it."""
        turn.status, turn.writer, turn.updated_at = QUEUED, None, now
        turn.attempt += 1
        await self._session.flush()

    async def lock_running(self, turn_ids: Collection[str]) -> Sequence[Turn]:
        """Locks those that are running, in the order of ids, so that two processes cannot deadlock."""
        query = select(Turn).where(IS_RUNNING, Turn.id.in_(turn_ids)).order_by(Turn.id)
        return (await self._session.scalars(query.with_for_update())).all()

    async def force_finish(self, turn: Turn, status: str, now: float) -> None:
        """Keeps the writer: if it is alive, its own result replaces this one."""
        turn.status, turn.partial_output, turn.body = status, None, None
        turn.updated_at = turn.completed_at = now
        await self._session.flush()

    async def clear_writers(self, conversation_id: str, *, also_lock: str = "") -> None:
        """Of force-finished turns: a late result of their writer is ignored from now on. `also_lock` is a turn to be
        deleted next, locked with them in the order of ids."""
        force_finished = Turn.completed_at.is_not(None) & Turn.writer.is_not(None)
        query = select(Turn.id).where(Turn.conversation_id == conversation_id, force_finished | (Turn.id == also_lock))
        if found := (await self._session.scalars(query)).all():
            locking = select(Turn.id).where(Turn.id.in_(found)).order_by(Turn.id)
            await self._session.execute(locking.with_for_update(key_share=not also_lock))
            await self._session.execute(update(Turn).where(Turn.id.in_(found), force_finished).values(writer=None))

    async def stopped_among(self, turn_ids: Collection[str], writer: str) -> set[str]:
        """Those of the ids whose turns were cancelled, deleted or lost to another writer."""
        query = select(Turn.id).where(Turn.id.in_(turn_ids), Turn.status != CANCELLED, Turn.writer == writer)
        return set(turn_ids) - set((await self._session.scalars(query)).all())

    async def delete(self, turn_id: str) -> None:
        await self._session.execute(delete(Turn).where(Turn.id == turn_id))
