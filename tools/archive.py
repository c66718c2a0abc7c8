"""Histories as JSON Lines, a conversation each: written, and read back into the same tree."""

import hashlib
from collections.abc import AsyncIterator
from typing import Any, Literal, Self
from uuid import uuid4

from pydantic import BaseModel, ConfigDict, Field, model_validator

from database.models import Conversation, Item, Turn
from database.repositories import Repositories
from database.session import Database
from services.history import rows
from services.history.rows import Place
from services.history.store import Store

FORMAT: Literal["parley.conversation.1"] = "parley.conversation.1"


class ArchivedItem(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    data: dict[str, Any]
    parent_id: str | None = None
    turn_id: str | None = None
    choice: int | None = None
    created_at: float


class ArchivedTurn(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: str
    kind: str
    status: Literal["completed", "incomplete", "failed", "cancelled"]
    stored: bool
    background: bool = False
    model: str
    request: dict[str, Any] = Field({})
    metadata: dict[str, Any] = Field({}, validation_alias="metadata_", serialization_alias="metadata_")
    fingerprint: str | None = None
    previous_id: str | None = None
    parent_id: str | None = None
    choices: list[dict[str, Any]] | None = None
    usage: dict[str, int] | None = None
    error: dict[str, Any] | None = None
    created_at: float
    updated_at: float
    completed_at: float | None = None


class ArchivedConversation(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    format: Literal["parley.conversation.1"] = FORMAT
    id: str
    listed: bool = True
    title: str | None = None
    metadata: dict[str, Any] = Field({}, validation_alias="metadata_", serialization_alias="metadata_")
    created_at: float
    updated_at: float
    turns: list[ArchivedTurn] = []
    items: list[ArchivedItem] = []

    @model_validator(mode="after")
    def _is_a_tree(self) -> Self:
        known: set[str] = set()
        for item in self.items:
            id, type = item.data.get("id"), item.data.get("type")
            if not isinstance(id, str) or not isinstance(type, str):
                raise ValueError(f"an item of '{self.id}' has no id or no type")
            if id in known:
                raise ValueError(f"'{id}' is in '{self.id}' twice")
            if item.parent_id is not None and item.parent_id not in known:
                raise ValueError(f"'{id}' goes on from '{item.parent_id}', which does not come before it")
            known.add(id)
        return self


async def export(database: Database, owner: str) -> AsyncIterator[ArchivedConversation]:
    """Answers that are still being written are left out."""
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
    archived = ArchivedConversation.model_validate(conversation)
    archived.turns = [ArchivedTurn.model_validate(turn) for turn in turns if turn.completed_at is not None]
    known = {turn.id for turn in archived.turns}
    archived.items = [ArchivedItem.model_validate(item) for item in items if item.turn_id in known | {None}]
    return archived


async def restore(database: Database, owner: str, archived: ArchivedConversation) -> bool:
    """False where it is there already. What has somebody else's id gets one of its own, the same each time."""
    own_id = "conv_" + hashlib.sha256(f"{owner} {archived.id}".encode()).hexdigest()[:32]
    async with Store(database).writing() as repositories:
        taken = await repositories.conversations.owners([archived.id, own_id])
        if owner in taken.values():
            return False
        id = own_id if taken else archived.id
        await repositories.conversations.add([_conversation(archived, id, owner)])
        names = await _turns(repositories, archived, id, owner)
        await repositories.items.add([_item(item, id, owner, names) for item in archived.items])
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
    """What each turn is called now."""
    taken = await repositories.turns.status([turn.id for turn in archived.turns])
    names = {turn.id: turn.id[:-32] + uuid4().hex if turn.id in taken else turn.id for turn in archived.turns}
    told = [turn.model_dump(by_alias=True) | _named(turn, names) for turn in archived.turns]
    await repositories.turns.add([Turn(**turn, owner=owner, conversation_id=id) for turn in told])
    return names


def _named(turn: ArchivedTurn, names: dict[str, str]) -> dict[str, str | None]:
    return {"id": names[turn.id], "previous_id": names.get(turn.previous_id or "", turn.previous_id)}


def _item(item: ArchivedItem, conversation_id: str, owner: str, names: dict[str, str]) -> Item:
    turn_id = names.get(item.turn_id or "")
    place = Place(owner, conversation_id, item.created_at, item.parent_id, turn_id, item.choice)
    return rows.chain([item.data], place)[0]
