"""POST /v1/chat/completions, the same without /v1, and GET /chat."""

from typing import Any

from fastapi import APIRouter, Request, Response

from app.common import idempotency
from app.common.dependencies import Caller, Chat, Drain, Info, Models, Sse, Tokenizers, UnknownKeys
from app.common.disconnect import while_connected
from app.common.json_body import JsonRoute
from app.common.openapi import EVENTS
from schemas.chat_answer_schema import ChatCompletion
from schemas.create_chat_completion_schema import CreateChatCompletionRequest
from schemas.sampling_schema import EffectiveSampling
from schemas.status_schema import NotStarted, Running
from schemas.tokenize_schema import InputTokens
from services.large import aside

router = APIRouter(tags=["chat"], route_class=JsonRoute)


@router.post("/v1/chat/completions", response_model=ChatCompletion, responses=EVENTS)
@router.post("/chat/completions", response_model=ChatCompletion, include_in_schema=False)
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
    ignored = unknown.of(await aside(chat.unknown_keys, body))
    if body.stream:
        return await sse.openai(chat.stream(body, caller.owner, idempotency_key, ignored.add), ignored.headers)
    answer = await while_connected(request, chat.create(body, caller.owner, idempotency_key, ignored.add))
    response.headers.update(ignored.headers)
    return answer


@router.post("/v1/chat/completions/input_tokens")
@router.post("/chat/completions/input_tokens", include_in_schema=False)
async def count_input_tokens(
    body: CreateChatCompletionRequest,
    response: Response,
    chat: Chat,
    tokenizers: Tokenizers,
    caller: Caller,
    unknown: UnknownKeys,
) -> InputTokens:
    """Of the body of a chat completion, before it is asked for."""
    ignored = unknown.of(await aside(chat.unknown_keys, body))
    count = await tokenizers.count(body, caller.owner, ignored.add)
    response.headers.update(ignored.headers)
    return count


@router.get("/chat")
async def status(request: Request, models: Models, drain: Drain, server: Info) -> Running | NotStarted:
    if drain.begun:
        return NotStarted(reason="draining")
    if models.is_loading():
        return NotStarted(reason="loading")
    if models.has_failed():
        return NotStarted(reason="failed")
    model = models.default()
    engine = models.engine(model.name)
    sampling = EffectiveSampling(**(await models.sampling(model.name)).given)
    return Running(
        llm_serving_url=str(request.base_url),
        model_name=model.name,
        max_new_tokens=server.max_new_tokens or (engine.max_length if engine else None),
        device=engine.device if engine else server.device,
        do_sample=sampling.temperature > 0,
        sampling=sampling,
        system_prompt=server.system_prompt,
    )
