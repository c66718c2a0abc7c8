"""Every statement about items. The caller's session decides where a transaction ends."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from database.bulk import insert_all
from database.models import Item
from database.portion import Portion, fitting, weight

Order = Literal["asc", "desc"]


@dataclass(frozen=True, slots=True)
class _Order:
    where: list[ColumnElement[bool]]
    by: ColumnElement[Any]


def _in_order(conversation_id: str, order: Order, after: Item | None, kind: str | None) -> _Order:
    where: list[ColumnElement[bool]] = [Item.conversation_id == conversation_id]
    if kind is not None:
        where.append(Item.type == kind)
    if after is not None:
        where.append(Item.seq > after.seq if order == "asc" else Item.seq < after.seq)
    return _Order(where, Item.seq.asc() if order == "asc" else Item.seq.desc())


SOME = 10_000  # values that a statement may have, of 32,766


class ItemRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, items: Sequence[Item]) -> None:
        """In this order: a parent comes before its children."""
        await insert_all(self._session, items)

    async def get(self, conversation_id: str, item_id: str) -> Item | None:
        query = select(Item).where(Item.conversation_id == conversation_id, Item.id == item_id)
        return await self._session.scalar(query)

    async def newest(self, conversation_id: str) -> Item | None:
        query = select(Item).where(Item.conversation_id == conversation_id)
        return await self._session.scalar(query.order_by(Item.seq.desc()).limit(1))

    async def page(
        self,
        conversation_id: str,
        *,
        order: Order = "asc",
        after: Item | None = None,
        limit: int | None = None,
        kind: str | None = None,
    ) -> Sequence[Item]:
        wanted = _in_order(conversation_id, order, after, kind)
        return (await self._session.scalars(select(Item).where(*wanted.where).order_by(wanted.by).limit(limit))).all()

    async def portion(
        self,
        conversation_id: str,
        *,
        order: Order = "asc",
        after: Item | None = None,
        limit: int,
        kind: str | None = None,
    ) -> Portion:
        """As many of the page as are light enough to be read at once."""
        wanted = _in_order(conversation_id, order, after, kind)
        query = select(weight(Item.data)).where(*wanted.where).order_by(wanted.by).limit(limit)
        size = fitting((await self._session.scalars(query)).all())
        rows = await self.page(conversation_id, order=order, after=after, limit=size + 1, kind=kind)
        return Portion(rows, size)

    async def of_turn(self, turn_id: str) -> Sequence[Item]:
        return (await self._session.scalars(select(Item).where(Item.turn_id == turn_id).order_by(Item.seq))).all()

    async def of_turns(self, turn_ids: Collection[str]) -> Sequence[Item]:
        found = await self._session.scalars(select(Item).where(Item.turn_id.in_(turn_ids)))
        return sorted(found, key=lambda item: item.seq)

    async def known(self, conversation_id: str, ids: Collection[str]) -> Sequence[Item]:
        """Those of the ids that the conversation has already."""
        query = select(Item).where(Item.conversation_id == conversation_id, Item.id.in_(ids))
        return (await self._session.scalars(query)).all()

    async def which(self, places: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
        """Those of them, a conversation's id and an item's, where there is one."""
        found: set[tuple[str, str]] = set()
        for start in range(0, len(places), SOME):
            some = places[start : start + SOME]
            conversations, ids = {conversation for conversation, _ in some}, {item for _, item in some}
            query = select(Item.conversation_id, Item.id)
            # not as pairs: for those SQLite would read them all
            rows = await self._session.execute(query.where(Item.conversation_id.in_(conversations), Item.id.in_(ids)))
            found |= {(conversation, item) for conversation, item in rows} & set(some)
        return found

    async def of_owner(self, owner: str, ids: Collection[str]) -> Sequence[Item]:
        """Oldest first: where an id is there twice, the newer one counts."""
        found = await self._session.scalars(select(Item).where(Item.owner == owner, Item.id.in_(ids)))
        # sorted here: a database would rather read all of the owner's items in their order
        return sorted(found, key=lambda item: item.seq)

    async def delete(self, items: Sequence[Item]) -> None:
        """What went on from one of them goes on from what that one went on from."""
        parents = {item.id: item.parent_id for item in items}
        for item in items:
            parent = item.parent_id
            while parent in parents:
                parent = parents[parent]
            children = update(Item).where(
                Item.conversation_id == item.conversation_id, Item.parent_id == item.id, Item.id.not_in(parents)
            )
            await self._session.execute(children.values(parent_id=parent))
        for item in reversed(items):  # children first
            await self._session.execute(delete(Item).where(Item.seq == item.seq))
