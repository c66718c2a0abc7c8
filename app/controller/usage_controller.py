"""Usage under /v1/organization/usage, for admin keys."""

from typing import Annotated, Any

from fastapi import Depends, Query
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError

from app.common.auth import require_admin
from app.common.dependencies import UsageReports
from app.common.json_body import JsonRoute
from app.common.router import TwinRouter
from schemas.usage_schema import Group, Ids, Time, UsagePage, UsageQuery, Width

router = TwinRouter(tags=["administration"], route_class=JsonRoute, dependencies=[Depends(require_admin)])


async def _query(
    start_time: Time,
    end_time: Time | None = None,
    bucket_width: Width = "1d",
    limit: Annotated[int | None, Query(ge=1, le=168)] = None,
    page: Annotated[str | None, Query(max_length=12)] = None,
    project_ids: Annotated[Ids | None, Query(alias="project_ids[]")] = None,
    api_key_ids: Annotated[Ids | None, Query(alias="api_key_ids[]")] = None,
    models: Annotated[Ids | None, Query(alias="models[]")] = None,
    group_by: Annotated[list[Group] | None, Query(alias="group_by[]")] = None,
) -> UsageQuery:
    given: dict[str, Any] = {
        "start_time": start_time,
        "end_time": end_time,
        "bucket_width": bucket_width,
        "limit": limit,
        "page": page,
        "project_ids": project_ids,
        "api_key_ids": api_key_ids,
        "models": models,
        "group_by": group_by or [],
    }
    try:
        return UsageQuery(**given)
    except ValidationError as error:
        raise RequestValidationError([{**each, "loc": ("query", *each["loc"])} for each in error.errors()]) from error


UsageParams = Annotated[UsageQuery, Depends(_query)]


@router.get("/organization/usage/completions")
async def completions(query: UsageParams, usage: UsageReports) -> UsagePage:
    """Of chat completions, responses, messages and legacy completions."""
    return await usage.page("completions", query)


@router.get("/organization/usage/embeddings")
async def embeddings(query: UsageParams, usage: UsageReports) -> UsagePage:
    return await usage.page("embeddings", query)
