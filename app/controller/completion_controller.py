"""POST /v1/completions."""

from typing import Any

from fastapi import Request, Response

from app.common.dependencies import Caller, Completions, Sse, UnknownKeys
from app.common.disconnect import while_connected
from app.common.json_body import JsonRoute
from app.common.openapi import EVENTS
from app.common.router import TwinRouter
from schemas.completion_schema import Completion, CompletionRequest

router = TwinRouter(tags=["completions"], route_class=JsonRoute)


@router.post("/completions", response_model=Completion, response_model_exclude_unset=True, responses=EVENTS)
async def create_completion(
    body: CompletionRequest,
    request: Request,
    response: Response,
    completions: Completions,
    caller: Caller,
    sse: Sse,
    unknown: UnknownKeys,
) -> Any:
    ignored = unknown.header(completions.unknown_keys(body))
    if body.stream:
        return await sse.openai(completions.stream(body, caller.owner), ignored)
    response.headers.update(ignored)
    return await while_connected(request, completions.create(body, caller.owner))
