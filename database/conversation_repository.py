"""Statements on conversations. The caller's session ends the transaction.

Lock order: conversations, then turns, then all other rows, each in the order of ids, so that transactions cannot
deadlock. A deletion cascades in an order that the database chooses, so it locks all turns first.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, bindparam, delete, literal_column, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from database.bulk import execute_all, insert_all
from database.models import Conversation, Item, Turn
from database.turn_repository import IS_RUNNING

# spelled as in the partial index: only then does SQLite use it
IS_LISTED: ColumnElement[bool] = literal_column("conversations.listed")

TOUCH = update(Conversation).where(Conversation.id == bindparam("touched")).values(updated_at=bindparam("now"))


@dataclass(frozen=True, slots=True)
class ConversationState:
    newest_item_id: str | None
    is_running: bool


class ConversationRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def get(self, conversation_id: str, owner: str, *, lock: bool = False) -> Conversation | None:
        """`lock`: until the transaction ends (SQLite has one writer at a time anyway)."""
        query = select(Conversation).where(Conversation.id == conversation_id, Conversation.owner == owner)
        return await self._session.scalar(query.with_for_update() if lock else query)

    async def listed(self, conversation_ids: Collection[str]) -> set[str]:
        """Those of the ids that are listed conversations."""
        query = select(Conversation.id).where(Conversation.id.in_(conversation_ids), Conversation.listed)
        return set((await self._session.scalars(query)).all())

    async def latest(self, owner: str) -> Conversation | None:
        return next(iter(await self.page(owner, limit=1)), None)

    async def page(self, owner: str, *, limit: int, after: Conversation | None = None) -> Sequence[Conversation]:
        """Most recently used first."""
        query = select(Conversation).where(Conversation.owner == owner, IS_LISTED)
        place = tuple_(Conversation.updated_at, Conversation.id)
        if after is not None:
            query = query.where(place < tuple_(after.updated_at, after.id))
        order = Conversation.updated_at.desc(), Conversation.id.desc()
        return (await self._session.scalars(query.order_by(*order).limit(limit))).all()

    async def all_of(self, owner: str, *, after: str, limit: int = 100) -> Sequence[Conversation]:
        """Includes unlisted ones; ordered by id."""
        query = select(Conversation).where(Conversation.owner == owner, Conversation.id > after)
        return (await self._session.scalars(query.order_by(Conversation.id).limit(limit))).all()

    async def owners(self, conversation_ids: Collection[str]) -> dict[str, str]:
        """Owner by id; ids without a conversation are left out."""
        query = select(Conversation.id, Conversation.owner).where(Conversation.id.in_(conversation_ids))
        return {row.id: row.owner for row in await self._session.execute(query)}

    async def delete_unused(self, before: float, *, limit: int) -> int:
        """Deletes those not used since `before`, except while a turn is running. Returns how many."""
        running = select(Turn.id).where(Turn.conversation_id == Conversation.id, IS_RUNNING)
        old = select(Conversation.id).where(Conversation.updated_at < before, ~running.exists())
        oldest = (await self._session.scalars(old.order_by(Conversation.updated_at).limit(limit))).all()
        # checked again: waiting for a lock may have taken long
        return await self._delete(oldest, Conversation.updated_at < before)

    async def delete_batch(self, owner: str, *, limit: int) -> int:
        """Returns how many were deleted; 0 when none are left."""
        batch = select(Conversation.id).where(Conversation.owner == owner).limit(limit)
        return await self._delete((await self._session.scalars(batch)).all())

    async def add(self, conversations: Sequence[Conversation]) -> None:
        await insert_all(self._session, conversations)

    async def lock(self, conversation_ids: Collection[str]) -> set[str]:
        """Locks those that exist until the transaction ends, in the order of ids, as touch() does, so that two
        processes cannot deadlock."""
        query = select(Conversation.id).where(Conversation.id.in_(conversation_ids)).order_by(Conversation.id)
        return set((await self._session.scalars(query.with_for_update(key_share=True))).all())

    async def lock_of_turns(self, turn_ids: Collection[str]) -> None:
        """As lock(), for the conversations of turns; to be called before reading turns that will be changed."""
        query = select(Conversation.id).where(
            Conversation.id.in_(select(Turn.conversation_id).where(Turn.id.in_(turn_ids)))
        )
        await self._session.execute(query.order_by(Conversation.id).with_for_update(key_share=True))

    async def states(self, conversation_ids: Collection[str]) -> dict[str, ConversationState]:
        items = select(Item.id).where(Item.conversation_id == Conversation.id).order_by(Item.seq.desc())
        running = select(Turn.id).where(Turn.conversation_id == Conversation.id, IS_RUNNING)
        query = select(Conversation.id, items.limit(1).scalar_subquery(), running.exists())
        found = await self._session.execute(query.where(Conversation.id.in_(conversation_ids)))
        return {id: ConversationState(newest, is_running) for id, newest, is_running in found}

    async def touch(self, conversation_ids: Collection[str], now: float) -> None:
        """Also locks them."""
        rows = [{"touched": each, "now": now} for each in sorted(set(conversation_ids))]
        await execute_all(self._session, TOUCH, rows)

    async def delete(self, conversation_id: str) -> None:
        """Deletes the conversation with its turns and items."""
        await self._delete([conversation_id])

    async def _delete(self, conversation_ids: Collection[str], *conditions: ColumnElement[bool]) -> int:
        """Returns how many existed."""
        if not conversation_ids:
            return 0
        query = select(Conversation.id).where(Conversation.id.in_(conversation_ids), *conditions)
        deleted = (await self._session.scalars(query.order_by(Conversation.id).with_for_update())).all()
        if not deleted:
            return 0
        turns = select(Turn.id).where(Turn.conversation_id.in_(deleted)).order_by(Turn.id)
        await self._session.execute(turns.with_for_update())
        await self._session.execute(delete(Conversation).where(Conversation.id.in_(deleted)))
        return len(deleted)
