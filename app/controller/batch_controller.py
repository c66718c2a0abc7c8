"""Batches in OpenAI's shapes, under /v1/batches."""

from typing import Annotated

from fastapi import Query, Response

from app.common.dependencies import Batches, Caller, UnknownKeys
from app.common.json_body import JsonRoute
from app.common.router import TwinRouter
from schemas.batch_schema import Batch, NewBatch
from schemas.ignored_keys import ignored_keys
from schemas.page_schema import Page

router = TwinRouter(tags=["batches"], route_class=JsonRoute)


@router.post("/batches")
async def create_batch(
    body: NewBatch, response: Response, batches: Batches, caller: Caller, unknown: UnknownKeys
) -> Batch:
    response.headers.update(unknown.header(ignored_keys(body)))
    return await batches.create(body, caller.owner)


@router.get("/batches")
async def list_batches(
    batches: Batches,
    caller: Caller,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[str | None, Query(max_length=128)] = None,
) -> Page[Batch]:
    return await batches.page(caller.owner, limit=limit, after=after)


@router.get("/batches/{batch_id}")
async def retrieve_batch(batch_id: str, batches: Batches, caller: Caller) -> Batch:
    return await batches.get(batch_id, caller.owner)


@router.post("/batches/{batch_id}/cancel")
async def cancel_batch(batch_id: str, batches: Batches, caller: Caller) -> Batch:
    return await batches.cancel(batch_id, caller.owner)
