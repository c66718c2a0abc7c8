"""POST /v1/embeddings, and the same without /v1."""

from fastapi import APIRouter, Response

from app.common.dependencies import Embedder
from app.common.json_body import JsonRoute
from schemas.embeddings_schema import EmbeddingList, EmbeddingRequest

router = APIRouter(tags=["embeddings"], route_class=JsonRoute)


@router.post("/v1/embeddings", response_model=EmbeddingList)
@router.post("/embeddings", response_model=EmbeddingList, include_in_schema=False)
async def create_embeddings(body: EmbeddingRequest, embedder: Embedder) -> Response:
    return Response(await embedder.create(body), media_type="application/json")
