"""Statements on items. The caller's session ends the transaction."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from database.bounded_page import BoundedPage, json_length, num_within_limit
from database.bulk import insert_all
from database.models import Item

Order = Literal["asc", "desc"]


@dataclass(frozen=True, slots=True)
class _Selection:
    where: list[ColumnElement[bool]]
    by: ColumnElement[Any]


def _selection(conversation_id: str, order: Order, after: Item | None, kind: str | None) -> _Selection:
    where: list[ColumnElement[bool]] = [Item.conversation_id == conversation_id]
    if kind is not None:
        where.append(Item.type == kind)
    if after is not None:
        where.append(Item.seq > after.seq if order == "asc" else Item.seq < after.seq)
    return _Selection(where, Item.seq.asc() if order == "asc" else Item.seq.desc())


MAX_VALUES = 10_000  # in one statement; SQLite's limit is 32,766


class ItemRepository:
    def __init__(self, session: AsyncSession) -> None:
        self._session = session

    async def add(self, items: Sequence[Item]) -> None:
        """A parent must come before its children."""
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
        selection = _selection(conversation_id, order, after, kind)
        return (
            await self._session.scalars(select(Item).where(*selection.where).order_by(selection.by).limit(limit))
        ).all()

    async def bounded_page(
        self,
        conversation_id: str,
        *,
        order: Order = "asc",
        after: Item | None = None,
        limit: int,
        kind: str | None = None,
    ) -> BoundedPage:
        """A page cut to the number of items whose JSON fits the size limit."""
        selection = _selection(conversation_id, order, after, kind)
        query = select(json_length(Item.data)).where(*selection.where).order_by(selection.by).limit(limit)
        size = num_within_limit((await self._session.scalars(query)).all())
        rows = await self.page(conversation_id, order=order, after=after, limit=size + 1, kind=kind)
        return BoundedPage(rows, size)

    async def of_turn(self, turn_id: str) -> Sequence[Item]:
        return (await self._session.scalars(select(Item).where(Item.turn_id == turn_id).order_by(Item.seq))).all()

    async def of_turns(self, turn_ids: Collection[str]) -> Sequence[Item]:
        found = await self._session.scalars(select(Item).where(Item.turn_id.in_(turn_ids)))
        return sorted(found, key=lambda item: item.seq)

    async def get_many(self, conversation_id: str, ids: Collection[str]) -> Sequence[Item]:
        """Those of the ids that the conversation has."""
        query = select(Item).where(Item.conversation_id == conversation_id, Item.id.in_(ids))
        return (await self._session.scalars(query)).all()

    async def existing_keys(self, keys: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
        """Those of the keys (conversation id, item id) that exist."""
        found: set[tuple[str, str]] = set()
        for start in range(0, len(keys), MAX_VALUES):
            batch = keys[start : start + MAX_VALUES]
            conversations, ids = {conversation for conversation, _ in batch}, {item for _, item in batch}
            query = select(Item.conversation_id, Item.id)
            # not as pairs: SQLite would scan the table for them
            rows = await self._session.execute(query.where(Item.conversation_id.in_(conversations), Item.id.in_(ids)))
            found |= {(conversation, item) for conversation, item in rows} & set(batch)
        return found

    async def of_owner(self, owner: str, ids: Collection[str]) -> Sequence[Item]:
        """Oldest first, so that in a map by id the newest wins."""
        found = await self._session.scalars(select(Item).where(Item.owner == owner, Item.id.in_(ids)))
        # sorted here: with ORDER BY a database would scan all of the owner's items
        return sorted(found, key=lambda item: item.seq)

    async def delete(self, items: Sequence[Item]) -> None:
        """Re-parents the children of each deleted item to its nearest ancestor that stays."""
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
