"""POST /v1/chat/completions and its token count."""

from typing import Any

from fastapi import Request, Response

from app.common import idempotency
from app.common.dependencies import Caller, Chat, Sse, Tokenizers, UnknownKeys
from app.common.disconnect import while_connected
from app.common.json_body import JsonRoute
from app.common.openapi import EVENTS
from app.common.router import TwinRouter
from schemas.chat_answer_schema import ChatCompletion
from schemas.create_chat_completion_schema import CreateChatCompletionRequest
from schemas.tokenize_schema import InputTokens
from services.large import offload

router = TwinRouter(tags=["chat"], route_class=JsonRoute)


@router.post("/chat/completions", response_model=ChatCompletion, responses=EVENTS)
async def create_chat_completion(
    body: CreateChatCompletionRequest,
    request: Request,
    response: Response,
    chat: Chat,
    caller: Caller,
    sse: Sse,
    unknown: UnknownKeys,
    idempotency_key: idempotency.Key,
) -> Any:
    ignored = unknown.of(await offload(chat.unknown_keys, body))
    if body.stream:
        return await sse.openai(chat.stream(body, caller.owner, idempotency_key, ignored.add), ignored.headers)
    answer = await while_connected(request, chat.create(body, caller.owner, idempotency_key, ignored.add))
    response.headers.update(ignored.headers)
    return answer


@router.post("/chat/completions/input_tokens")
async def count_input_tokens(
    body: CreateChatCompletionRequest,
    response: Response,
    chat: Chat,
    tokenizers: Tokenizers,
    caller: Caller,
    unknown: UnknownKeys,
) -> InputTokens:
    """Counts the prompt tokens of a chat completion request."""
    ignored = unknown.of(await offload(chat.unknown_keys, body))
    count = await tokenizers.count(body, caller.owner, ignored.add)
    response.headers.update(ignored.headers)
    return count
