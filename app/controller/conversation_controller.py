"""The Conversations API under /v1/conversations, the same without /v1; listing one's own is ours."""

from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Response
from pydantic import BaseModel

from app.common import idempotency
from app.common.dependencies import Caller, Conversations, Items, Search, UnknownKeys
from app.common.json_body import JsonRoute
from schemas.conversation_schema import (
    AddedItems,
    Conversation,
    ConversationUpdate,
    DeletedConversation,
    Found,
    ItemPage,
    NewConversation,
)
from schemas.ignored_keys import ignored_keys
from schemas.item_schema import Includable
from schemas.page_schema import Order, Page
from services.item_service import PageQuery

router = APIRouter(tags=["conversations"], route_class=JsonRoute)


async def _include(
    plain: Annotated[list[Includable], Query(alias="include")] = [],  # noqa: B006  FastAPI copies it
    bracketed: Annotated[list[Includable], Query(alias="include[]")] = [],  # noqa: B006  as the client sends it
) -> None:
    """All that could be asked for is in every answer."""


def _ignored(body: BaseModel) -> Iterator[str]:
    """Nothing of an item is left aside here: all of it is kept."""
    return (name for name in ignored_keys(body) if not name.startswith("items."))


INCLUDE = [Depends(_include)]
After = Annotated[str | None, Query(max_length=128)]
Limit = Annotated[int, Query(ge=1, le=100)]


@router.get("/v1/conversations")
@router.get("/conversations", include_in_schema=False)
async def list_conversations(
    conversations: Conversations, caller: Caller, limit: Limit = 20, after: After = None
) -> Page[Conversation]:
    return await conversations.page(caller.owner, limit=limit, after=after)


@router.post("/v1/conversations")
@router.post("/conversations", include_in_schema=False)
async def create_conversation(
    body: NewConversation,
    response: Response,
    conversations: Conversations,
    caller: Caller,
    unknown: UnknownKeys,
    idempotency_key: idempotency.Key,
) -> Conversation:
    response.headers.update(unknown.header(_ignored(body)))
    return await conversations.create(caller.owner, body.items, body.metadata, body.title, idempotency_key)


@router.get("/v1/conversations/search")
@router.get("/conversations/search", include_in_schema=False)
async def search(
    search: Search,
    caller: Caller,
    query: Annotated[str, Query(min_length=1, max_length=256)],
    limit: Limit = 20,
    after: Annotated[str | None, Query(max_length=256)] = None,
) -> Page[Found]:
    """In all that was said to models and by them. No conversation's id is `search`."""
    return await search.find(caller.owner, query, limit=limit, after=after)


@router.get("/v1/conversations/{conversation_id}")
@router.get("/conversations/{conversation_id}", include_in_schema=False)
async def get_conversation(conversation_id: str, conversations: Conversations, caller: Caller) -> Conversation:
    return await conversations.get(conversation_id, caller.owner)


@router.post("/v1/conversations/{conversation_id}")
@router.post("/conversations/{conversation_id}", include_in_schema=False)
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


@router.delete("/v1/conversations/{conversation_id}")
@router.delete("/conversations/{conversation_id}", include_in_schema=False)
async def delete_conversation(
    conversation_id: str, conversations: Conversations, caller: Caller
) -> DeletedConversation:
    return await conversations.delete(conversation_id, caller.owner)


@router.get("/v1/conversations/{conversation_id}/items", dependencies=INCLUDE)
@router.get("/conversations/{conversation_id}/items", dependencies=INCLUDE, include_in_schema=False)
async def list_items(
    conversation_id: str, items: Items, caller: Caller, limit: Limit = 20, order: Order = "desc", after: After = None
) -> ItemPage:
    return await items.page(conversation_id, caller.owner, PageQuery(limit=limit, order=order, after=after))


@router.post("/v1/conversations/{conversation_id}/items", dependencies=INCLUDE)
@router.post("/conversations/{conversation_id}/items", dependencies=INCLUDE, include_in_schema=False)
async def add_items(
    conversation_id: str,
    body: AddedItems,
    response: Response,
    items: Items,
    caller: Caller,
    unknown: UnknownKeys,
    idempotency_key: idempotency.Key,
) -> ItemPage:
    response.headers.update(unknown.header(_ignored(body)))
    return await items.add(conversation_id, caller.owner, body.items, idempotency_key)


@router.get("/v1/conversations/{conversation_id}/items/{item_id}", dependencies=INCLUDE)
@router.get("/conversations/{conversation_id}/items/{item_id}", dependencies=INCLUDE, include_in_schema=False)
async def get_item(conversation_id: str, item_id: str, items: Items, caller: Caller) -> dict[str, Any]:
    return await items.get(conversation_id, item_id, caller.owner)


@router.delete("/v1/conversations/{conversation_id}/items/{item_id}")
@router.delete("/conversations/{conversation_id}/items/{item_id}", include_in_schema=False)
async def delete_item(conversation_id: str, item_id: str, items: Items, caller: Caller) -> Conversation:
    return await items.delete(conversation_id, item_id, caller.owner)
