"""The Responses API under /v1/responses."""

from typing import Annotated, Any

from fastapi import Query, Request
from fastapi import Response as HttpResponse

from app.common import idempotency
from app.common.dependencies import Caller, Compactions, Responses, Sse, StoredResponses, UnknownKeys
from app.common.disconnect import while_connected
from app.common.json_body import JsonRoute
from app.common.openapi import EVENTS
from app.common.router import TwinRouter
from schemas.page_schema import Order, Page
from schemas.response_answer_schema import CompactedResponse, DeletedResponse, Response
from schemas.response_schema import CompactRequest, ResponseInput, ResponseRequest, Retrieval
from schemas.tokenize_schema import InputTokens
from services.large import offload

router = TwinRouter(tags=["responses"], route_class=JsonRoute)


@router.post("/responses", response_model=Response, responses=EVENTS)
async def create_response(
    body: ResponseRequest,
    request: Request,
    response: HttpResponse,
    responses: Responses,
    caller: Caller,
    sse: Sse,
    unknown: UnknownKeys,
    idempotency_key: idempotency.Key,
) -> Any:
    ignored = unknown.of(await offload(responses.unknown_keys, body))
    if body.stream:
        return await sse.responses(responses.stream(body, caller.owner, idempotency_key, ignored.add), ignored.headers)
    answer = await while_connected(request, responses.create(body, caller.owner, idempotency_key, ignored.add))
    response.headers.update(ignored.headers)
    return answer


@router.post("/responses/input_tokens")
async def count_input_tokens(
    body: ResponseInput, response: HttpResponse, responses: Responses, caller: Caller, unknown: UnknownKeys
) -> InputTokens:
    ignored = unknown.of(await offload(responses.unknown_keys, body))
    count = await responses.count(body, caller.owner, ignored.add)
    response.headers.update(ignored.headers)
    return count


@router.post("/responses/compact")
async def compact(
    body: CompactRequest,
    request: Request,
    response: HttpResponse,
    compactions: Compactions,
    caller: Caller,
    unknown: UnknownKeys,
) -> CompactedResponse:
    ignored = unknown.of(await offload(compactions.unknown_keys, body))
    compacted = await while_connected(request, compactions.compact(body, caller.owner, ignored.add))
    response.headers.update(ignored.headers)
    return compacted


@router.get("/responses/{response_id}", response_model=Response, responses=EVENTS)
async def retrieve_response(
    response_id: str,
    query: Annotated[Retrieval, Query()],
    response: HttpResponse,
    stored: StoredResponses,
    caller: Caller,
    sse: Sse,
    unknown: UnknownKeys,
) -> Any:
    ignored = unknown.header(stored.unknown_keys(query))
    if query.stream:
        return await sse.responses(stored.resume(response_id, caller.owner, query), ignored)
    response.headers.update(ignored)
    return await stored.retrieve(response_id, caller.owner, query)


@router.delete("/responses/{response_id}")
async def delete_response(response_id: str, stored: StoredResponses, caller: Caller) -> DeletedResponse:
    return await stored.delete(response_id, caller.owner)


@router.post("/responses/{response_id}/cancel")
async def cancel_response(response_id: str, stored: StoredResponses, caller: Caller) -> Response:
    return await stored.cancel(response_id, caller.owner)


@router.get("/responses/{response_id}/input_items")
async def list_input_items(
    response_id: str,
    stored: StoredResponses,
    caller: Caller,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: Order = "desc",
    after: Annotated[str | None, Query(max_length=128)] = None,
) -> Page[dict[str, Any]]:
    return await stored.input_items(response_id, caller.owner, limit=limit, order=order, after=after)
