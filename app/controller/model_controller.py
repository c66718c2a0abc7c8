"""GET /v1/models, POST /tokenize and /detokenize, and each of them with or without /v1."""

from typing import Annotated

from fastapi import APIRouter, Query, Response

from app.common.dependencies import Caller, Catalogue, Tokenizers, UnknownKeys
from app.common.json_body import JsonRoute
from schemas.ignored_keys import ignored_keys
from schemas.status_schema import Model
from schemas.status_schema import Models as ModelList
from schemas.tokenize_schema import Detokenized, DetokenizeRequest, TokenizeRequest, Tokens

router = APIRouter(tags=["models"], route_class=JsonRoute)


@router.get("/v1/models")
@router.get("/models", include_in_schema=False)
async def list_models(
    catalogue: Catalogue,
    client_version: Annotated[str | None, Query(description="Codex's own; nothing depends on it")] = None,
) -> ModelList:
    return await catalogue.models()


# ids of hub models have a slash: percent-encoded by some clients, raw by others
@router.get("/v1/models/{model:path}")
@router.get("/models/{model:path}", include_in_schema=False)
async def retrieve_model(model: str, catalogue: Catalogue) -> Model:
    return await catalogue.model(model)


@router.post("/tokenize", response_model=Tokens)
@router.post("/v1/tokenize", response_model=Tokens, include_in_schema=False)
async def tokenize(body: TokenizeRequest, tokenizers: Tokenizers, caller: Caller, unknown: UnknownKeys) -> Response:
    headers = unknown.header(ignored_keys(body))
    return Response(await tokenizers.tokenize(body, caller.owner), headers=headers, media_type="application/json")


@router.post("/detokenize")
@router.post("/v1/detokenize", include_in_schema=False)
async def detokenize(
    body: DetokenizeRequest, response: Response, tokenizers: Tokenizers, unknown: UnknownKeys
) -> Detokenized:
    response.headers.update(unknown.header(ignored_keys(body)))
    return await tokenizers.detokenize(body)
