"""Items of conversations: add, list, get, delete."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass

from database.item_repository import Order
from database.models import Conversation as ConversationRow
from database.models import Item as ItemRow
from database.repositories import Repositories
from database.session import Database
from schemas.conversation_schema import Conversation, ItemPage
from schemas.page_schema import page
from services.chat.compaction.item import public_item
from services.chat.items import Item
from services.errors import InvalidRequest, NotFound
from services.history import audit, item_rows
from services.history.context import get_conversation
from services.history.idempotency import IdempotencyKey, find_key, store_key
from services.history.item_rows import ItemPosition
from services.history.store import Store, conversation_busy
from services.large import offload

ITEM_ID = re.compile(r"[^\x00]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PageQuery:
    limit: int
    order: Order
    after: str | None = None


class ItemService:
    def __init__(self, database: Database) -> None:
        self._store = Store(database)

    async def add(
        self, conversation_id: str, owner: str, items: Sequence[Item], idempotency_key: IdempotencyKey | None = None
    ) -> ItemPage:
        """Appends items; the next answer continues from the last of them."""
        async with self._store.writing() as repositories:
            await get_conversation(
                repositories, conversation_id, owner, lock=True
            )  # waits for a request of the same key
            if (earlier := await find_key(repositories, idempotency_key, owner)) is not None:
                known = await repositories.items.get_many(conversation_id, earlier.item_ids or [])
                added = [public_item(row.data) for row in sorted(known, key=lambda row: row.seq)]
                return page(added, [item["id"] for item in added], len(added))
            conversation = await lock_idle(repositories, conversation_id, owner)
            added = await add_items(repositories, conversation, items)
            ids = [item["id"] for item in added]
            await store_key(repositories, idempotency_key, owner, conversation.id, ids)
        return page([public_item(item) for item in added], ids, len(added))

    async def page(self, conversation_id: str, owner: str, query: PageQuery) -> ItemPage:
        async with self._store.reading() as repositories:
            await get_conversation(repositories, conversation_id, owner)
            after = None if query.after is None else await _cursor(repositories, conversation_id, query.after)
            found = await repositories.items.bounded_page(
                conversation_id, order=query.order, after=after, limit=query.limit
            )
        return page([public_item(row.data) for row in found.rows], [row.id for row in found.rows], found.size)

    async def get(self, conversation_id: str, item_id: str, owner: str) -> Item:
        async with self._store.reading() as repositories:
            await get_conversation(repositories, conversation_id, owner)
            return public_item((await _item(repositories, conversation_id, item_id)).data)

    async def delete(self, conversation_id: str, item_id: str, owner: str) -> Conversation:
        """Re-parents the children of the deleted item."""
        async with self._store.writing() as repositories:
            conversation = await lock_idle(repositories, conversation_id, owner)
            await repositories.items.delete([await _item(repositories, conversation_id, item_id)])
            audit.record(repositories, owner, "item.deleted", item_id, conversation=conversation_id)
            conversation.updated_at = time.time()
            return conversation_of(conversation)


def conversation_of(row: ConversationRow) -> Conversation:
    return Conversation(
        id=row.id, created_at=int(item_rows.finite_timestamp(row.created_at)), metadata=row.metadata_, title=row.title
    )


async def lock_idle(repositories: Repositories, conversation_id: str, owner: str) -> ConversationRow:
    """Locks a conversation in which no answer is being generated."""
    conversation = await get_conversation(repositories, conversation_id, owner, lock=True)
    if await repositories.turns.running_in(conversation.id) is not None:
        raise conversation_busy()
    await repositories.turns.clear_writers(conversation.id)
    return conversation


async def add_items(repositories: Repositories, conversation: ConversationRow, items: Sequence[Item]) -> list[Item]:
    new = [item_rows.with_defaults(item) for item in items]
    ids = [item["id"] for item in new]
    if len(set(ids)) < len(ids) or await repositories.items.get_many(conversation.id, ids):
        raise InvalidRequest("An item of this id is in the conversation already", param="items")
    now = time.time()
    tip = await repositories.items.newest(conversation.id)
    position = ItemPosition(conversation.owner, conversation.id, now, parent_id=tip.id if tip else None)
    await repositories.items.add(await offload(item_rows.linked_rows, new, position))
    await repositories.conversations.touch([conversation.id], now)
    return new


async def _cursor(repositories: Repositories, conversation_id: str, after: str) -> ItemRow:
    try:
        return await _item(repositories, conversation_id, after)
    except NotFound:
        raise InvalidRequest("'after' is not an item of this conversation", param="after") from None


async def _item(repositories: Repositories, conversation_id: str, item_id: str) -> ItemRow:
    row = await repositories.items.get(conversation_id, item_id) if ITEM_ID.fullmatch(item_id) else None
    if row is None:
        raise NotFound(f"No item with id '{item_id[:64]}' in this conversation", param="item_id")
    return row
