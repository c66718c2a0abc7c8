"""Conversations and their messages."""

import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, cast
from uuid import uuid4

from database.models import CANCELLED, COMPLETED, INCOMPLETE
from database.models import Conversation as ConversationRow
from database.models import Item as ItemRow
from database.models import Turn as TurnRow
from database.repositories import Repositories
from database.session import Database
from schemas.conversation_schema import Conversation, DeletedConversation
from schemas.message_schema import StoredMessage
from schemas.page_schema import Page, page
from services.chat import items as chat_items
from services.chat.items import Item
from services.errors import InvalidRequest, NotFound
from services.history import audit
from services.history.context import get_conversation
from services.history.idempotency import IdempotencyKey, find_key, store_key
from services.history.item_rows import finite_timestamp
from services.history.store import Store
from services.item_service import add_items, conversation_of

OWN_ID = re.compile(r"msg_([0-9a-f]{32})")


class ConversationService:
    def __init__(self, database: Database) -> None:
        self._store = Store(database)

    async def create(
        self,
        owner: str,
        items: Sequence[Item] = (),
        metadata: Mapping[str, Any] | None = None,
        title: str | None = None,
        idempotency_key: IdempotencyKey | None = None,
    ) -> Conversation:
        now = time.time()
        new = ConversationRow(
            id=f"conv_{uuid4().hex}",
            owner=owner,
            title=title,
            metadata_=dict(metadata or {}),
            created_at=now,
            updated_at=now,
        )
        async with self._store.writing() as repositories:
            if (earlier := await find_key(repositories, idempotency_key, owner)) is not None:
                return conversation_of(await get_conversation(repositories, earlier.conversation_id, owner))
            await repositories.conversations.add([new])
            if items:
                await add_items(repositories, new, items)
            await store_key(repositories, idempotency_key, owner, new.id)
        return conversation_of(new)

    async def get(self, conversation_id: str, owner: str) -> Conversation:
        async with self._store.reading() as repositories:
            return conversation_of(await get_conversation(repositories, conversation_id, owner))

    async def page(self, owner: str, *, limit: int, after: str | None = None) -> Page[Conversation]:
        """Most recently used first."""
        async with self._store.reading() as repositories:
            start = None if after is None else await _conversation_cursor(repositories, after, owner)
            found = await repositories.conversations.page(owner, limit=limit + 1, after=start)
        return page([conversation_of(row) for row in found], [row.id for row in found], limit)

    async def update(
        self, conversation_id: str, owner: str, metadata: Mapping[str, Any] | None, title: str | None
    ) -> Conversation:
        """None leaves a field as it is."""
        async with self._store.writing() as repositories:
            found = await get_conversation(repositories, conversation_id, owner, lock=True)
            found.metadata_ = found.metadata_ if metadata is None else dict(metadata)
            found.title = found.title if title is None else title
            return conversation_of(found)

    async def delete(self, conversation_id: str, owner: str) -> DeletedConversation:
        """Deletes the conversation with its items and stored answers."""
        async with self._store.writing() as repositories:
            await get_conversation(repositories, conversation_id, owner, lock=True)
            await repositories.conversations.delete(conversation_id)
            audit.record(repositories, owner, "conversation.deleted", conversation_id)
        return DeletedConversation(id=conversation_id)

    async def messages(
        self, owner: str, conversation: str | None, *, limit: int, after: str | None = None
    ) -> Page[StoredMessage]:
        """Oldest first; by default those of the most recently used conversation."""
        async with self._store.reading() as repositories:
            if conversation is not None:
                found = await get_conversation(repositories, conversation, owner)
            elif (latest := await repositories.conversations.latest(owner)) is not None:
                found = latest
            else:
                return page([], [], limit)
            start = None if after is None else await _cursor(repositories, found, after)
            found_items = await repositories.items.bounded_page(found.id, kind="message", after=start, limit=limit)
            rows, is_end = found_items.rows, len(found_items.rows) <= found_items.size
            replies = [row.turn_id for row in rows if row.turn_id is not None and row.choice is not None]
            turns = {turn.id: turn for turn in await repositories.turns.get_many(replies)}
            running = await repositories.turns.running_in(found.id) if is_end else None
        messages = [_stored_message(row.data, row, turns.get(row.turn_id or "")) for row in rows]
        listed = [*messages, *([_running_message(running)] if running else [])]
        return page(listed, [each.id for each in listed], limit if is_end else found_items.size)


async def _conversation_cursor(repositories: Repositories, after: str, owner: str) -> ConversationRow:
    try:
        return await get_conversation(repositories, after, owner)
    except NotFound:
        raise InvalidRequest("'after' is none of your conversations", param="after") from None


async def _cursor(repositories: Repositories, conversation: ConversationRow, message_id: str) -> ItemRow:
    for item_id in (f"msg_{message_id}", message_id):
        if "\0" not in item_id and (row := await repositories.items.get(conversation.id, item_id)) is not None:
            return row
    raise InvalidRequest("'after' is not a message of this conversation", param="after")


def _stored_message(item: Item, row: ItemRow, turn: TurnRow | None) -> StoredMessage:
    reply = turn if row.choice is not None else None
    own = OWN_ID.fullmatch(row.id)
    return StoredMessage(
        id=own[1] if own else row.id,
        conversation_id=row.conversation_id,
        role=item.get("role", "user"),
        content=chat_items.chat_content(item.get("content", [])),
        status=_status(reply.status) if reply else item.get("status", COMPLETED),
        finish_reason=cast("str | None", reply.choices[0]["finish_reason"]) if reply and reply.choices else None,
        model=reply.model if reply else None,
        created_at=finite_timestamp(row.created_at),
    )


def _status(turn_status: str) -> str:
    return turn_status if turn_status in (COMPLETED, CANCELLED) else INCOMPLETE


def _running_message(turn: TurnRow) -> StoredMessage:
    return StoredMessage(
        id=turn.id[-32:],
        conversation_id=turn.conversation_id,
        role="assistant",
        content=chat_items.text(turn.partial_output[0]) if turn.partial_output else "",
        status="in_progress",
        finish_reason=None,
        model=turn.model,
        created_at=turn.created_at,
    )
