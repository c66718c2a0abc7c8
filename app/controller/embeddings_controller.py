"""POST /v1/embeddings, and the same without /v1."""

from fastapi import APIRouter, Request, Response

from app.common.dependencies import Embedder
from app.common.disconnect import while_connected
from app.common.ignored import ignored_header
from schemas.embeddings_schema import EmbeddingList, EmbeddingRequest

router = APIRouter(tags=["embeddings"])


@router.post("/v1/embeddings", response_model=EmbeddingList)
@router.post("/embeddings", response_model=EmbeddingList, include_in_schema=False)
async def create_embeddings(body: EmbeddingRequest, request: Request, embedder: Embedder) -> Response:
    headers = ignored_header(embedder.unknown_keys(body))
    answer = await while_connected(request, embedder.create(body))
    return Response(answer, headers=headers, media_type="application/json")
