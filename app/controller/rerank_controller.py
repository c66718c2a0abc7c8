"""POST /v1/rerank and /v1/score, and /v2/rerank, which newer clients of Cohere's API call."""

from fastapi import Request, Response

from app.common.dependencies import Caller, Reranker, UnknownKeys
from app.common.disconnect import while_connected
from app.common.json_body import JsonRoute
from app.common.router import TwinRouter
from schemas.ignored_keys import ignored_keys
from schemas.rerank_schema import RerankList, RerankRequest, ScoreList, ScoreRequest

router = TwinRouter(tags=["rerank"], route_class=JsonRoute)


@router.post("/rerank")
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


router.alias("/v2/rerank", rerank, methods=["POST"])


@router.post("/score")
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
