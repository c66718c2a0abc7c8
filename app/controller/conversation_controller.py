"""The Conversations API under /v1/conversations. Listing, search and trees are extensions."""

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import Depends, Query, Response
from pydantic import BaseModel

from app.common import idempotency
from app.common.dependencies import Caller, Conversations, Items, Search, Secrets, Trees, UnknownKeys
from app.common.json_body import JsonRoute
from app.common.router import TwinRouter
from schemas.conversation_schema import (
    AddedItems,
    Conversation,
    ConversationUpdate,
    DeletedConversation,
    ItemPage,
    NewConversation,
    SearchResult,
)
from schemas.ignored_keys import ignored_keys
from schemas.item_schema import Includable
from schemas.page_schema import Order, Page
from schemas.tree_schema import TreePage
from services.item_service import PageQuery

router = TwinRouter(tags=["conversations"], route_class=JsonRoute)


async def _include(
    plain: Annotated[list[Includable], Query(alias="include")] = [],  # noqa: B006  FastAPI copies it
    bracketed: Annotated[list[Includable], Query(alias="include[]")] = [],  # noqa: B006  as the client sends it
) -> None:
    """Accepted and without effect: items are always returned whole."""


def _ignored(body: BaseModel) -> Iterator[str]:
    """Unknown keys of items are stored, so they are not reported as ignored."""
    return (name for name in ignored_keys(body) if not name.startswith("items."))


INCLUDE = [Depends(_include)]
After = Annotated[str | None, Query(max_length=128)]
Limit = Annotated[int, Query(ge=1, le=100)]


@router.get("/conversations")
async def list_conversations(
    conversations: Conversations, caller: Caller, limit: Limit = 20, after: After = None
) -> Page[Conversation]:
    return await conversations.page(caller.owner, limit=limit, after=after)


@router.post("/conversations")
async def create_conversation(
    body: NewConversation,
    response: Response,
    conversations: Conversations,
    caller: Caller,
    unknown: UnknownKeys,
    secrets: Secrets,
    idempotency_key: idempotency.Key,
) -> Conversation:
    response.headers.update(unknown.header(_ignored(body)))
    items = await secrets.opened(body.items, caller.owner)
    return await conversations.create(caller.owner, items, body.metadata, body.title, idempotency_key)


@router.get("/conversations/search")
async def search(
    search: Search,
    caller: Caller,
    query: Annotated[str, Query(min_length=1, max_length=256)],
    limit: Limit = 20,
    after: Annotated[str | None, Query(max_length=256)] = None,
) -> Page[SearchResult]:
    """Searches the items of all conversations. `search` cannot be a conversation's id."""
    return await search.find(caller.owner, query, limit=limit, after=after)


@router.get("/conversations/{conversation_id}")
async def get_conversation(conversation_id: str, conversations: Conversations, caller: Caller) -> Conversation:
    return await conversations.get(conversation_id, caller.owner)


@router.post("/conversations/{conversation_id}")
async def update_conversation(
    conversation_id: str,
    body: ConversationUpdate,
    response: Response,
    conversations: Conversations,
    caller: Caller,
    unknown: UnknownKeys,
) -> Conversation:
    response.headers.update(unknown.header(_ignored(body)))
    return await conversations.update(conversation_id, caller.owner, body.metadata, body.title)


@router.delete("/conversations/{conversation_id}")
async def delete_conversation(
    conversation_id: str, conversations: Conversations, caller: Caller
) -> DeletedConversation:
    return await conversations.delete(conversation_id, caller.owner)


@router.get("/conversations/{conversation_id}/tree")
async def get_tree(
    conversation_id: str, trees: Trees, caller: Caller, limit: Limit = 100, after: After = None
) -> TreePage:
    """The items with the branches they are on, and the answers they are part of. An extension."""
    return await trees.page(conversation_id, caller.owner, limit=limit, after=after)


@router.get("/conversations/{conversation_id}/items", dependencies=INCLUDE)
async def list_items(
    conversation_id: str, items: Items, caller: Caller, limit: Limit = 20, order: Order = "desc", after: After = None
) -> ItemPage:
    return await items.page(conversation_id, caller.owner, PageQuery(limit=limit, order=order, after=after))


@router.post("/conversations/{conversation_id}/items", dependencies=INCLUDE)
async def add_items(
    conversation_id: str,
    body: AddedItems,
    response: Response,
    items: Items,
    caller: Caller,
    unknown: UnknownKeys,
    secrets: Secrets,
    idempotency_key: idempotency.Key,
) -> ItemPage:
    response.headers.update(unknown.header(_ignored(body)))
    given = await secrets.opened(body.items, caller.owner)
    return await items.add(conversation_id, caller.owner, given, idempotency_key)


@router.get("/conversations/{conversation_id}/items/{item_id}", dependencies=INCLUDE)
async def get_item(conversation_id: str, item_id: str, items: Items, caller: Caller) -> dict[str, Any]:
    return await items.get(conversation_id, item_id, caller.owner)


@router.delete("/conversations/{conversation_id}/items/{item_id}")
async def delete_item(conversation_id: str, item_id: str, items: Items, caller: Caller) -> Conversation:
    return await items.delete(conversation_id, item_id, caller.owner)
