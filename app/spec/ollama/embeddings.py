"""Ollama's two routes for embeddings."""

import asyncio
import time
from functools import partial
from typing import Any

import orjson

from app.spec import EmbeddingRequest, Request, Response, Server, decoded, while_connected
from app.spec.framing import to_json
from app.spec.ollama.request import TOO_LONG, model
from schemas.ignored_keys import ignored_keys
from schemas.ollama_answer_schema import NANOSECONDS, OllamaEmbedding, OllamaEmbeddings
from schemas.ollama_schema import EmbeddingsRequest, EmbedRequest
from services.parameter_names import ParameterNames, translate_error, translate_errors

NOTHING: ParameterNames = {}
PROMPT: ParameterNames = {"input": "prompt"}


class Embedder:
    def __init__(self, server: Server) -> None:
        self._server = server

    async def embed(self, body: EmbedRequest, request: Request) -> Response:
        began = time.perf_counter()
        headers = self._server.ignored(_ignored(body)).headers
        answer = await while_connected(request, self._vectors(decoded(_embed_request, body), request))
        found = OllamaEmbeddings(
            model=body.model or "default",
            embeddings=[each["embedding"] for each in answer["data"]],
            total_duration=round((time.perf_counter() - began) * NANOSECONDS),
            prompt_eval_count=answer["usage"]["prompt_tokens"],
        )
        return Response(await asyncio.to_thread(to_json, found), headers=headers, media_type="application/json")

    async def embed_one(self, body: EmbeddingsRequest, request: Request) -> Response:
        headers = self._server.ignored(_ignored(body)).headers
        answer = await while_connected(request, self._vectors(decoded(_embeddings_request, body), request, PROMPT))
        found = OllamaEmbedding(embedding=answer["data"][0]["embedding"])
        return Response(to_json(found), headers=headers, media_type="application/json")

    async def _vectors(
        self, embedding_request: EmbeddingRequest, request: Request, names: ParameterNames = NOTHING
    ) -> dict[str, Any]:
        with translate_errors(partial(translate_error, names=names, too_long=TOO_LONG)):
            answer = await self._server.embed(embedding_request, self._server.owner(request))
        vectors: dict[str, Any] = await asyncio.to_thread(orjson.loads, answer)  # may be megabytes
        return vectors


def _embed_request(body: EmbedRequest) -> EmbeddingRequest:
    fields = {"model": model(body.model), "input": body.input, "dimensions": body.dimensions}
    return EmbeddingRequest.model_validate(fields | ({"truncate_prompt_tokens": -1} if body.truncate else {}))


def _embeddings_request(body: EmbeddingsRequest) -> EmbeddingRequest:
    fields = {"model": model(body.model), "input": body.prompt, "truncate_prompt_tokens": -1}
    return EmbeddingRequest.model_validate(fields)


def _ignored(body: EmbedRequest | EmbeddingsRequest) -> list[str]:
    return sorted([*ignored_keys(body), *(f"options.{name}" for name in body.options)])
