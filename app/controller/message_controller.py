"""The simple chat routes: new messages, stored messages, GET /chat/stream for `EventSource`, stop."""

from typing import Annotated, Any

from fastapi import Header, Query, Request, Response

from app.common import idempotency
from app.common.dependencies import Caller, EventSources, Keys, Messages, Sse, UnknownKeys
from app.common.disconnect import while_connected
from app.common.json_body import UntypedJsonRoute
from app.common.openapi import EVENTS
from app.common.router import Router
from schemas.ignored_keys import ignored_keys
from schemas.message_schema import (
    BrowserQuestion,
    NewMessage,
    NewMessageAnswer,
    StoppedMessage,
    StoredMessages,
    StreamToken,
)

router = Router(tags=["messages"], strict_content_type=False, route_class=UntypedJsonRoute)


@router.post("/chat/new/message/", response_model=NewMessageAnswer, responses=EVENTS)
async def new_message(
    body: NewMessage,
    request: Request,
    response: Response,
    messages: Messages,
    caller: Caller,
    sse: Sse,
    unknown: UnknownKeys,
    idempotency_key: idempotency.Key,
    accept: Annotated[str, Header()] = "",
) -> Any:
    ignored = unknown.header(ignored_keys(body))
    if body.stream:
        return await sse.messages(messages.stream(body, caller.owner, idempotency_key), ignored)
    if "text/event-stream" in accept:
        return await sse.messages(messages.whole(body, caller.owner, idempotency_key), ignored)
    response.headers.update(ignored)
    return await while_connected(request, messages.new(body, caller.owner, idempotency_key))


@router.get("/chat/get/messages/")
async def get_messages(
    messages: Messages,
    caller: Caller,
    conversation_id: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    after: Annotated[str | None, Query(max_length=64)] = None,
) -> StoredMessages:
    return await messages.messages(caller.owner, conversation_id, limit, after)


@router.get(
    "/chat/stream",
    response_class=Response,
    responses={**EVENTS, 204: {"description": "Nothing more to come: do not reconnect"}},
)
async def stream(
    question: Annotated[BrowserQuestion, Query()],
    event_sources: EventSources,
    caller: Caller,
    sse: Sse,
    last_event_id: Annotated[str | None, Header(max_length=64)] = None,
) -> Response:
    if last_event_id is None:
        return await sse.browser(event_sources.create(question, caller.owner))
    rest = event_sources.resume(last_event_id, caller.owner)
    return await sse.browser(rest) if rest is not None else Response(status_code=204)


@router.post("/chat/stop/{message_id}")
async def stop(message_id: str, event_sources: EventSources, caller: Caller) -> StoppedMessage:
    return await event_sources.stop(message_id, caller.owner)


@router.post("/chat/token")
async def stream_token(keys: Keys, caller: Caller) -> StreamToken:
    return StreamToken(token=keys.token(caller), expires_in=keys.token_ttl)
