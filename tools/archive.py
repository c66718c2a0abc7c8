"""Exports histories as JSON Lines, a conversation per line, and restores them as the same trees."""

import hashlib
from collections.abc import AsyncIterator, Mapping
from typing import Any
from uuid import uuid4

from pydantic import BaseModel

from database.models import Conversation, Item, Turn
from database.repositories import Repositories
from database.session import Database
from services.history import item_rows
from services.history.item_rows import ItemPosition
from services.history.store import Store
from tools.archive_schema import ArchivedConversation, ArchivedItem, ArchivedTurn


async def export(database: Database, owner: str) -> AsyncIterator[ArchivedConversation]:
    """Leaves out answers that are being generated."""
    store, after = Store(database), ""
    while True:
        async with store.reading() as repositories:
            found = await repositories.conversations.all_of(owner, after=after)
            archived = [await _archived(repositories, conversation) for conversation in found]
        for each in archived:
            yield each
        if not found:
            return
        after = found[-1].id


async def _archived(repositories: Repositories, conversation: Conversation) -> ArchivedConversation:
    turns = await repositories.turns.of_conversation(conversation.id)
    items = await repositories.items.page(conversation.id)
    known = {turn.id for turn in turns if turn.completed_at is not None}
    return ArchivedConversation.model_construct(
        **_columns(conversation, ArchivedConversation),
        turns=[ArchivedTurn.model_construct(**_columns(turn, ArchivedTurn)) for turn in turns if turn.id in known],
        items=[
            ArchivedItem.model_construct(**_columns(item, ArchivedItem))
            for item in items
            if item.turn_id is None or item.turn_id in known
        ],
    )


def _columns(row: Conversation | Turn | Item, model: type[BaseModel]) -> dict[str, Any]:
    """Without validation: an export includes everything, an import validates."""
    names = {name: str(field.validation_alias or name) for name, field in model.model_fields.items()}
    return {name: getattr(row, column) for name, column in names.items() if hasattr(row, column)}


async def restore(database: Database, owner: str, archived: ArchivedConversation) -> bool:
    """Returns False if the conversation exists. If another owner has its id, it gets a new one, always the same."""
    own_id = "conv_" + hashlib.sha256(f"{owner} {archived.id}".encode()).hexdigest()[:32]
    async with Store(database).writing() as repositories:
        taken = await repositories.conversations.owners([archived.id, own_id])
        if owner in taken.values():
            return False
        id = own_id if taken else archived.id
        await repositories.conversations.add([_conversation(archived, id, owner)])
        names = await _turns(repositories, archived, id, owner)
        await repositories.items.add(rows_of(archived, id, owner, names))
    return True


def _conversation(archived: ArchivedConversation, id: str, owner: str) -> Conversation:
    return Conversation(
        id=id,
        owner=owner,
        listed=archived.listed,
        title=archived.title,
        metadata_=archived.metadata,
        created_at=archived.created_at,
        updated_at=archived.updated_at,
    )


async def _turns(repositories: Repositories, archived: ArchivedConversation, id: str, owner: str) -> dict[str, str]:
    """Maps the archived id of each turn to its new one."""
    taken = await repositories.turns.status([turn.id for turn in archived.turns])
    names = {turn.id: turn.id[:-32] + uuid4().hex if turn.id in taken else turn.id for turn in archived.turns}
    columns = [turn.model_dump(by_alias=True) | _named(turn, names) for turn in archived.turns]
    await repositories.turns.add([Turn(**turn, owner=owner, conversation_id=id) for turn in columns])
    return names


def _named(turn: ArchivedTurn, names: dict[str, str]) -> dict[str, str | None]:
    return {"id": names[turn.id], "previous_id": names.get(turn.previous_id or "", turn.previous_id)}


def rows_of(archived: ArchivedConversation, conversation_id: str, owner: str, names: Mapping[str, str]) -> list[Item]:
    """`names`: the new id of each turn."""
    return [_item(item, conversation_id, owner, names) for item in archived.items]


def _item(item: ArchivedItem, conversation_id: str, owner: str, names: Mapping[str, str]) -> Item:
    turn_id = names.get(item.turn_id or "")
    position = ItemPosition(owner, conversation_id, item.created_at, item.parent_id, turn_id, item.choice)
    return item_rows.linked_rows([item.data], position)[0]
