"""POST /v1/embeddings, and the same without /v1."""

from fastapi import APIRouter, Request, Response

from app.common.dependencies import Caller, Embedder, UnknownKeys
from app.common.disconnect import while_connected
from app.common.json_body import JsonRoute
from schemas.embeddings_schema import EmbeddingList, EmbeddingRequest
from schemas.ignored_keys import ignored_keys

router = APIRouter(tags=["embeddings"], route_class=JsonRoute)


@router.post("/v1/embeddings", response_model=EmbeddingList)
@router.post("/embeddings", response_model=EmbeddingList, include_in_schema=False)
async def create_embeddings(
    body: EmbeddingRequest, request: Request, embedder: Embedder, caller: Caller, unknown: UnknownKeys
) -> Response:
    headers = unknown.header(ignored_keys(body))
    answer = await while_connected(request, embedder.create(body, caller.owner))
    return Response(answer, headers=headers, media_type="application/json")
