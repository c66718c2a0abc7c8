"""Stored chat completions: GET /v1/chat/completions and the routes below it."""

import re
from typing import Annotated

from fastapi import Depends, Request
from fastapi import Query as InQuery

from app.common.dependencies import Caller, StoredCompletions
from app.common.json_body import JsonRoute
from app.common.router import TwinRouter
from schemas.page_schema import Order, Page
from schemas.stored_schema import Deleted, MetadataUpdate, StoredChatCompletion, StoredChatMessage
from services.errors import InvalidRequest
from services.turn_service import Query

router = TwinRouter(tags=["stored chat completions"], route_class=JsonRoute)

After = Annotated[str | None, InQuery(max_length=128)]
Limit = Annotated[int, InQuery(ge=1, le=100)]
KEY = re.compile(r"metadata\[([^\]]*)\]")
METADATA = {
    "name": "metadata",
    "in": "query",
    "style": "deepObject",
    "explode": True,
    "description": "metadata[key]=value: those that have it",
    "schema": {"type": "object", "maxProperties": 16, "additionalProperties": {"type": "string", "maxLength": 512}},
}


async def _metadata(request: Request) -> dict[str, str]:
    """Parses metadata[key]=value."""
    found = {match[1]: value for name, value in request.query_params.items() if (match := KEY.fullmatch(name))}
    if len(found) > 16 or any(len(key) > 64 or len(value) > 512 or "\0" in key + value for key, value in found.items()):
        raise InvalidRequest("'metadata' can be 16 pairs of a key and a value", param="metadata")
    return found


@router.get("/chat/completions", openapi_extra={"parameters": [METADATA]})
async def list_chat_completions(
    stored: StoredCompletions,
    caller: Caller,
    metadata: Annotated[dict[str, str], Depends(_metadata)],
    model: Annotated[str | None, InQuery(max_length=256, pattern=r"^[^\x00]*$")] = None,
    after: After = None,
    limit: Limit = 20,
    order: Order = "asc",
) -> Page[StoredChatCompletion]:
    query = Query(limit=limit, order=order, after=after, model=model, metadata=metadata)
    return await stored.page(caller.owner, query)


@router.get("/chat/completions/{completion_id}")
async def get_chat_completion(completion_id: str, stored: StoredCompletions, caller: Caller) -> StoredChatCompletion:
    return await stored.get(completion_id, caller.owner)


@router.post("/chat/completions/{completion_id}")
async def update_chat_completion(
    completion_id: str, body: MetadataUpdate, stored: StoredCompletions, caller: Caller
) -> StoredChatCompletion:
    return await stored.update_metadata(completion_id, caller.owner, body.metadata)


@router.delete("/chat/completions/{completion_id}")
async def delete_chat_completion(completion_id: str, stored: StoredCompletions, caller: Caller) -> Deleted:
    return await stored.delete(completion_id, caller.owner)


@router.get("/chat/completions/{completion_id}/messages")
async def list_messages(
    completion_id: str,
    stored: StoredCompletions,
    caller: Caller,
    after: After = None,
    limit: Limit = 20,
    order: Order = "asc",
) -> Page[StoredChatMessage]:
    return await stored.messages(completion_id, caller.owner, order=order, limit=limit, after=after)
