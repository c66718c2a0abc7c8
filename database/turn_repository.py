"""Every statement about turns. The caller's session decides where a transaction ends."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Update, bindparam, case, delete, literal_column, null, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import load_only

from database.bulk import execute_all, insert_all
from database.item_repository import SOME, Order
from database.json_text import json_text
from database.models import CANCELLED, IN_PROGRESS, RUNNING, Turn

# spelt out as in the partial indexes: only then both databases see that those answer
IS_STORED: ColumnElement[bool] = literal_column("turns.stored")
IS_RUNNING: ColumnElement[bool] = literal_column(f"({RUNNING})")


def _change(*columns: str) -> Update:
    """Of the turn that is named so: `its_...` are the new values."""
    its: dict[str, ColumnElement[Any]] = {each: bindparam(f"its_{each}") for each in columns}
    return update(Turn).where(Turn.id == bindparam("turn")).values(**its)


ADMIT = _change("status", "updated_at", "model", "fingerprint", "request")
CHECKPOINT = _change("said", "updated_at").where(Turn.writer == bindparam("by"))
FINISH = _change("choices", "usage", "error", "updated_at", "completed_at").values(
    status=case((Turn.status == CANCELLED, CANCELLED), else_=bindparam("its_status")), said=null(), writer=None
)


@dataclass(frozen=True, slots=True)
class TurnResult:
    """How a turn ended."""

    status: str
    said: list[list[dict[str, Any]]]  # by choice: what becomes items
    choices: list[dict[str, Any]]
    usage: dict[str, int] | None
    at: float
    error: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Held:
    status: str
    completed_at: float | None


@dataclass(frozen=True, slots=True, eq=False)
class Admission:
    """What becomes known of a turn that has waited."""

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

    async def hold(self, turn_ids: Collection[str], writer: str) -> dict[str, Held]:
        """Those that their writer has not finished, also where others have given them up meanwhile, or cancelled them.
        In the order of ids, so that two processes never wait for each other."""
        query = select(Turn.id, Turn.status, Turn.completed_at).where(Turn.id.in_(turn_ids), Turn.writer == writer)
        held = await self._session.execute(query.order_by(Turn.id).with_for_update())
        return {id: Held(status, completed_at) for id, status, completed_at in held}

    async def admit(self, admissions: Sequence[Admission], now: float) -> None:
        its = {"its_status": IN_PROGRESS, "its_updated_at": now}
        rows = [
            its
            | {"turn": each.turn_id, "its_model": each.model, "its_fingerprint": each.fingerprint}
            | {"its_request": dict(each.request)}
            for each in admissions
        ]
        await execute_all(self._session, ADMIT, rows)

    async def status(self, turn_ids: Collection[str]) -> dict[str, str]:
        """Of those that there are."""
        found: dict[str, str] = {}
        ids = list(turn_ids)
        for start in range(0, len(ids), SOME):
            some = Turn.id.in_(ids[start : start + SOME])
            rows = await self._session.execute(select(Turn.id, Turn.status).where(some))
            found |= {each.id: each.status for each in rows}
        return found

    async def keep(self, turn_ids: Collection[str]) -> dict[str, str]:
        """As status() does; nobody deletes them until the transaction ends."""
        query = select(Turn.id, Turn.status).where(Turn.id.in_(turn_ids)).order_by(Turn.id)
        rows = await self._session.execute(query.with_for_update(read=True, key_share=True))
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
        # in the order of ids, so that two processes never wait for each other
        rows = [{"turn": turn, "its_said": said[turn], "its_updated_at": now, "by": writer} for turn in sorted(said)]
        await execute_all(self._session, CHECKPOINT, rows)

    async def finish(self, results: Mapping[str, TurnResult]) -> None:
        """One that was cancelled stays that."""
        rows = [
            {"turn": turn_id, "its_status": each.status, "its_updated_at": each.at, "its_completed_at": each.at}
            | {"its_choices": each.choices, "its_usage": each.usage, "its_error": each.error}
            for turn_id, each in results.items()
        ]
        await execute_all(self._session, FINISH, rows)

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

    async def dismiss_writers(self, conversation_id: str, *, doomed: str = "") -> None:
        """Of turns that were given up: they have no last word any more. `doomed` is the turn to be deleted next: it is
        locked with them, in the order of ids."""
        given_up = Turn.completed_at.is_not(None) & Turn.writer.is_not(None)
        query = select(Turn.id).where(Turn.conversation_id == conversation_id, given_up | (Turn.id == doomed))
        if found := (await self._session.scalars(query)).all():
            held = select(Turn.id).where(Turn.id.in_(found)).order_by(Turn.id)
            await self._session.execute(held.with_for_update(key_share=not doomed))
            await self._session.execute(update(Turn).where(Turn.id.in_(found), given_up).values(writer=None))

    async def stopped(self, turn_ids: Collection[str]) -> set[str]:
        """Those of them that somebody has cancelled or deleted."""
        query = select(Turn.id).where(Turn.id.in_(turn_ids), Turn.status != CANCELLED)
        return set(turn_ids) - set((await self._session.scalars(query)).all())

    async def delete(self, turn_id: str) -> None:
        await self._session.execute(delete(Turn).where(Turn.id == turn_id))
