"""POST /v1/rerank and /v1/score, the same without /v1, and /v2/rerank as newer clients of Cohere's API call it."""

from fastapi import APIRouter, Request, Response

from app.common.dependencies import Caller, Reranker, UnknownKeys
from app.common.disconnect import while_connected
from app.common.json_body import JsonRoute
from schemas.ignored_keys import ignored_keys
from schemas.rerank_schema import RerankList, RerankRequest, ScoreList, ScoreRequest

router = APIRouter(tags=["rerank"], route_class=JsonRoute)


@router.post("/v1/rerank")
@router.post("/rerank", include_in_schema=False)
@router.post("/v2/rerank", include_in_schema=False)
async def rerank(
    body: RerankRequest,
    request: Request,
    response: Response,
    reranker: Reranker,
    caller: Caller,
    unknown: UnknownKeys,
) -> RerankList:
    response.headers.update(unknown.header(ignored_keys(body)))
    return await while_connected(request, reranker.rerank(body, caller.owner))


@router.post("/v1/score")
@router.post("/score", include_in_schema=False)
async def score(
    body: ScoreRequest,
    request: Request,
    response: Response,
    reranker: Reranker,
    caller: Caller,
    unknown: UnknownKeys,
) -> ScoreList:
    response.headers.update(unknown.header(ignored_keys(body)))
    return await while_connected(request, reranker.score(body, caller.owner))
