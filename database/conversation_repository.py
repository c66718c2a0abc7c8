"""Every statement about conversations. The caller's session decides where a transaction ends.

A transaction locks conversations first, then turns, then all else, each in the order of ids: two of them never wait for
each other. A deletion reaches all that hangs on a conversation, in an order of the database's own: so it locks first.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, bindparam, delete, literal_column, select, tuple_, update
from sqlalchemy.ext.asyncio import AsyncSession

from database.bulk import execute_all, insert_all
from database.models import Conversation, Item, Turn
from database.turn_repository import IS_RUNNING

# spelt out as in the partial index: only then SQLite sees that it answers
IS_LISTED: ColumnElement[bool] = literal_column("conversations.listed")

TOUCH = update(Conversation).where(Conversation.id == bindparam("touched")).values(updated_at=bindparam("now"))


@dataclass(frozen=True, slots=True)
class State:
    newest: str | None  # item
    is_answered: bool  # just now


class ConversationRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def get(self, conversation_id: str, owner: str, *, lock: bool = False) -> Conversation | None:
        """`lock`: nobody else writes to it until the transaction ends (on SQLite every writer is alone anyway)."""
        query = select(Conversation).where(Conversation.id == conversation_id, Conversation.owner == owner)
        return await self._session.scalar(query.with_for_update() if lock else query)

    async def listed(self, conversation_ids: Collection[str]) -> set[str]:
        """Those of them that were begun as conversations."""
        query = select(Conversation.id).where(Conversation.id.in_(conversation_ids), Conversation.listed)
        return set((await self._session.scalars(query)).all())

    async def latest(self, owner: str) -> Conversation | None:
        return next(iter(await self.page(owner, limit=1)), None)

    async def page(self, owner: str, *, limit: int, after: Conversation | None = None) -> Sequence[Conversation]:
        """The one used last first."""
        query = select(Conversation).where(Conversation.owner == owner, IS_LISTED)
        place = tuple_(Conversation.updated_at, Conversation.id)
        if after is not None:
            query = query.where(place < tuple_(after.updated_at, after.id))
        order = Conversation.updated_at.desc(), Conversation.id.desc()
        return (await self._session.scalars(query.order_by(*order).limit(limit))).all()

    async def all_of(self, owner: str, *, after: str, limit: int = 100) -> Sequence[Conversation]:
        """Also those that are not listed; in the order of their ids."""
        query = select(Conversation).where(Conversation.owner == owner, Conversation.id > after)
        return (await self._session.scalars(query.order_by(Conversation.id).limit(limit))).all()

    async def owners(self, conversation_ids: Collection[str]) -> dict[str, str]:
        """Of those that there are."""
        query = select(Conversation.id, Conversation.owner).where(Conversation.id.in_(conversation_ids))
        return {row.id: row.owner for row in await self._session.execute(query)}

    async def forget(self, before: float, *, limit: int) -> int:
        """Deletes those that nobody has used since then, but for what is just being answered."""
        running = select(Turn.id).where(Turn.conversation_id == Conversation.id, IS_RUNNING)
        old = select(Conversation.id).where(Conversation.updated_at < before, ~running.exists())
        oldest = (await self._session.scalars(old.order_by(Conversation.updated_at).limit(limit))).all()
        # asked again where one had to be waited for
        return await self._delete(oldest, Conversation.updated_at < before)

    async def delete_some_of(self, owner: str, *, limit: int) -> int:
        """How many; none: there are no more."""
        some = select(Conversation.id).where(Conversation.owner == owner).limit(limit)
        return await self._delete((await self._session.scalars(some)).all())

    async def add(self, conversations: Sequence[Conversation]) -> None:
        await insert_all(self._session, conversations)

    async def hold(self, conversation_ids: Collection[str]) -> set[str]:
        """Those that there are; nobody else writes to them until the transaction ends. In the order of ids, as in
        touch(), so that two processes never wait for each other."""
        query = select(Conversation.id).where(Conversation.id.in_(conversation_ids)).order_by(Conversation.id)
        return set((await self._session.scalars(query.with_for_update(key_share=True))).all())

    async def hold_of_turns(self, turn_ids: Collection[str]) -> None:
        """As hold() does; to come before anything of the turns is read that is going to be changed."""
        query = select(Conversation.id).where(
            Conversation.id.in_(select(Turn.conversation_id).where(Turn.id.in_(turn_ids)))
        )
        await self._session.execute(query.order_by(Conversation.id).with_for_update(key_share=True))

    async def states(self, conversation_ids: Collection[str]) -> dict[str, State]:
        items = select(Item.id).where(Item.conversation_id == Conversation.id).order_by(Item.seq.desc())
        running = select(Turn.id).where(Turn.conversation_id == Conversation.id, IS_RUNNING)
        query = select(Conversation.id, items.limit(1).scalar_subquery(), running.exists())
        found = await self._session.execute(query.where(Conversation.id.in_(conversation_ids)))
        return {id: State(newest, is_answered) for id, newest, is_answered in found}

    async def touch(self, conversation_ids: Collection[str], now: float) -> None:
        """They are held by that, too."""
        rows = [{"touched": each, "now": now} for each in sorted(set(conversation_ids))]
        await execute_all(self._session, TOUCH, rows)

    async def delete(self, conversation_id: str) -> None:
        """With all that was said in it."""
        await self._delete([conversation_id])

    async def _delete(self, conversation_ids: Collection[str], *conditions: ColumnElement[bool]) -> int:
        """How many there were."""
        if not conversation_ids:
            return 0
        query = select(Conversation.id).where(Conversation.id.in_(conversation_ids), *conditions)
        gone = (await self._session.scalars(query.order_by(Conversation.id).with_for_update())).all()
        if not gone:
            return 0
        turns = select(Turn.id).where(Turn.conversation_id.in_(gone)).order_by(Turn.id)
        await self._session.execute(turns.with_for_update())
        await self._session.execute(delete(Conversation).where(Conversation.id.in_(gone)))
        return len(gone)
