"""POST /v1/embeddings."""

from fastapi import Request, Response

from app.common.dependencies import Caller, Embedder, UnknownKeys
from app.common.disconnect import while_connected
from app.common.json_body import JsonRoute
from app.common.router import TwinRouter
from schemas.embeddings_schema import EmbeddingList, EmbeddingRequest
from schemas.ignored_keys import ignored_keys

router = TwinRouter(tags=["embeddings"], route_class=JsonRoute)


@router.post("/embeddings", response_model=EmbeddingList)
async def create_embeddings(
    body: EmbeddingRequest, request: Request, embedder: Embedder, caller: Caller, unknown: UnknownKeys
) -> Response:
    headers = unknown.header(ignored_keys(body))
    answer = await while_connected(request, embedder.create(body, caller.owner))
    return Response(answer, headers=headers, media_type="application/json")
