"""Items of conversations: added, listed, found and deleted."""

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
from services.chat.items import Item
from services.errors import InvalidRequest, NotFound
from services.history import item_rows
from services.history.context import existing
from services.history.idempotency import IdempotencyKey, earlier, remember
from services.history.item_rows import Place
from services.history.store import Store, busy
from services.large import aside

ITEM_ID = re.compile(r"[^\x00]{1,128}")


@dataclass(frozen=True, slots=True, kw_only=True)
class PageQuery:
    """Of a list."""

    limit: int
    order: Order
    after: str | None = None


class ItemService:
    def __init__(self, database: Database) -> None:
        self._store = Store(database)

    async def add(
        self, conversation_id: str, owner: str, given: Sequence[Item], idempotency_key: IdempotencyKey | None = None
    ) -> ItemPage:
        """To the end: the next answer goes on from the last of them."""
        async with self._store.writing() as repositories:
            await existing(repositories, conversation_id, owner, lock=True)  # one of the same key is waited for
            if (before := await earlier(repositories, idempotency_key, owner)) is not None:
                known = await repositories.items.known(conversation_id, before.item_ids or [])
                added = [row.data for row in sorted(known, key=lambda row: row.seq)]
                return page(added, [item["id"] for item in added], len(added))
            conversation = await quiet(repositories, conversation_id, owner)
            added = await write(repositories, conversation, given)
            ids = [item["id"] for item in added]
            await remember(repositories, idempotency_key, owner, conversation.id, ids)
        return page(added, ids, len(added))

    async def page(self, conversation_id: str, owner: str, part: PageQuery) -> ItemPage:
        async with self._store.reading() as repositories:
            await existing(repositories, conversation_id, owner)
            after = None if part.after is None else await _cursor(repositories, conversation_id, part.after)
            found = await repositories.items.portion(conversation_id, order=part.order, after=after, limit=part.limit)
        return page([row.data for row in found.rows], [row.id for row in found.rows], found.size)

    async def get(self, conversation_id: str, item_id: str, owner: str) -> Item:
        async with self._store.reading() as repositories:
            await existing(repositories, conversation_id, owner)
            return (await _item(repositories, conversation_id, item_id)).data

    async def delete(self, conversation_id: str, item_id: str, owner: str) -> Conversation:
        """What came after it goes on from what came before it."""
        async with self._store.writing() as repositories:
            conversation = await quiet(repositories, conversation_id, owner)
            await repositories.items.delete([await _item(repositories, conversation_id, item_id)])
            conversation.updated_at = time.time()
            return shown(conversation)


def shown(row: ConversationRow) -> Conversation:
    return Conversation(
        id=row.id, created_at=int(item_rows.seconds(row.created_at)), metadata=row.metadata_, title=row.title
    )


async def quiet(repositories: Repositories, conversation_id: str, owner: str) -> ConversationRow:
    """Locked, and nobody is being answered in it."""
    conversation = await existing(repositories, conversation_id, owner, lock=True)
    if await repositories.turns.running_in(conversation.id) is not None:
        raise busy()
    await repositories.turns.dismiss_writers(conversation.id)
    return conversation


async def write(repositories: Repositories, conversation: ConversationRow, given: Sequence[Item]) -> list[Item]:
    items = [item_rows.whole(item) for item in given]
    ids = [item["id"] for item in items]
    if len(set(ids)) < len(ids) or await repositories.items.known(conversation.id, ids):
        raise InvalidRequest("An item of this id is in the conversation already", param="items")
    now = time.time()
    tip = await repositories.items.newest(conversation.id)
    place = Place(conversation.owner, conversation.id, now, parent_id=tip.id if tip else None)
    await repositories.items.add(await aside(item_rows.chain, items, place))
    await repositories.conversations.touch([conversation.id], now)
    return items


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
