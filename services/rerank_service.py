"""Relevance scores of texts, by a cross-encoder, or by cosine similarity of embeddings if none is configured."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Literal
from uuid import uuid4

import numpy as np

from schemas.embeddings_schema import EmbeddingUsage
from schemas.rerank_schema import (
    Method,
    RankedDocument,
    RerankList,
    RerankRequest,
    RerankResult,
    Score,
    ScoreList,
    ScoreRequest,
)
from services.embedding_service import pairs_of, resize, rows_of
from services.engine.base import EmbeddingEngine, Embeddings
from services.errors import InvalidRequest
from services.history.usage import input_usage
from services.history.usage_ledger import UsageLedger
from services.limit_service import UNLIMITED, Limiter
from services.metrics_service import Metrics
from services.model_service import ModelManager
from services.text_service import TextService
from services.trace_service import measured, traced_rerank

Room = AbstractAsyncContextManager[None]

CHARACTERS_A_TOKEN = 4  # about; for what is reserved before the texts are tokenised

METHODS: dict[Literal["reranker", "embedding"], Method] = {"reranker": "cross-encoder", "embedding": "embedding"}


@dataclass(frozen=True, slots=True)
class NamedText:
    text: str
    name: str  # its parameter, for errors


@dataclass(frozen=True, slots=True)
class Comparison:
    scores: list[float]
    model: str
    method: Method
    usage: EmbeddingUsage


class RerankService:
    def __init__(
        self,
        models: ModelManager,
        metrics: Metrics,
        ledger: UsageLedger,
        limits: Limiter = UNLIMITED,
        texts: TextService | None = None,
    ) -> None:
        self._models = models
        self._metrics = metrics
        self._ledger = ledger
        self._limits = limits
        self._texts = texts or TextService()

    async def rerank(self, request: RerankRequest, owner: str) -> RerankList:
        query = NamedText(request.query, "query")
        pairs = [(query, NamedText(text, f"documents.{index}")) for index, text in enumerate(request.documents)]
        comparison = await self._compare(request, owner, pairs)
        best = sorted(enumerate(comparison.scores), key=lambda item: -item[1])[: request.top_n]
        return RerankList(
            id=f"rerank-{uuid4().hex}",
            model=comparison.model,
            results=[_result(request, index, score) for index, score in best],
            usage=comparison.usage,
            method=comparison.method,
        )

    async def score(self, request: ScoreRequest, owner: str) -> ScoreList:
        comparison = await self._compare(request, owner, _pairs(request))
        return ScoreList(
            id=f"score-{uuid4().hex}",
            created=int(time.time()),
            model=comparison.model,
            data=[Score(index=index, score=score) for index, score in enumerate(comparison.scores)],
            usage=comparison.usage,
            method=comparison.method,
        )

    async def _compare(
        self, request: RerankRequest | ScoreRequest, owner: str, pairs: Sequence[tuple[NamedText, NamedText]]
    ) -> Comparison:
        with traced_rerank(request.model) as span:
            comparison = await self._scores(request, owner, pairs)
            measured(span, "rerank", comparison.model, comparison.usage.prompt_tokens)
        return comparison

    async def _scores(
        self, request: RerankRequest | ScoreRequest, owner: str, pairs: Sequence[tuple[NamedText, NamedText]]
    ) -> Comparison:
        started, kind = time.perf_counter(), self._kind(request.model)
        compare = _by_cross_encoder if kind == "reranker" else _by_embedding
        async with self._models.lease(request.model, kind) as model:
            size = sum(len(text) for text in {text.text for pair in pairs for text in pair})
            room = self._texts.room(size)
            async with self._limits.reserved(model.id, size // CHARACTERS_A_TOKEN) as reservation:
                scores, tokens = await compare(model.engine, owner, pairs, request.truncate_prompt_tokens, room)
                reservation.used = tokens
        self._metrics.embedded(model.id, tokens)
        await self._ledger.record(input_usage(model.id, "rerank", tokens, started))
        usage = EmbeddingUsage(prompt_tokens=tokens, total_tokens=tokens)
        return Comparison(scores, model.name, METHODS[kind], usage)

    def _kind(self, name: str | None) -> Literal["reranker", "embedding"]:
        """The named model's kind; without a name, or for a chat model, the best kind there is. lease() checks it."""
        match self._models.card(name).kind if name else None:
            case "reranker" | "embedding" as kind:
                return kind
            case _:
                return "reranker" if any(card.kind == "reranker" for card in self._models.cards()) else "embedding"


def _pairs(request: ScoreRequest) -> list[tuple[NamedText, NamedText]]:
    first, second = _texts(request.text_1, "text_1"), _texts(request.text_2, "text_2")
    if len(first) == 1:
        first *= len(second)
    if len(first) != len(second):
        raise InvalidRequest(f"'text_1' has {len(first)} texts: one, or as many as 'text_2'", param="text_1")
    return list(zip(first, second, strict=True))


def _texts(value: str | list[str], name: str) -> list[NamedText]:
    if isinstance(value, str):
        return [NamedText(value, name)]
    return [NamedText(text, f"{name}.{index}") for index, text in enumerate(value)]


def _result(request: RerankRequest, index: int, score: float) -> RerankResult:
    document = RankedDocument(text=request.documents[index]) if request.return_documents else None
    return RerankResult(index=index, relevance_score=score, document=document)


async def _by_cross_encoder(
    engine: EmbeddingEngine, owner: str, pairs: Sequence[tuple[NamedText, NamedText]], limit: int | None, room: Room
) -> tuple[list[float], int]:
    texts = [(first.text, second.text) for first, second in pairs]
    async with room:
        inputs = await asyncio.to_thread(pairs_of, texts, engine, limit, lambda index: pairs[index][1].name)
    scores = await engine.embed(inputs, owner)
    return np.frombuffer(scores.data, dtype="<f4").tolist(), sum(map(len, inputs))


async def _by_embedding(
    engine: EmbeddingEngine, owner: str, pairs: Sequence[tuple[NamedText, NamedText]], limit: int | None, room: Room
) -> tuple[list[float], int]:
    """Embeds each text once, however many it is compared with."""
    names = {text.text: text.name for pair in reversed(pairs) for text in pair}
    texts = list(names)
    async with room:
        inputs = await asyncio.to_thread(rows_of, texts, engine, limit, lambda index: names[texts[index]])
    embeddings = await engine.embed(inputs, owner)
    position = {text: index for index, text in enumerate(texts)}
    positions = [(position[first.text], position[second.text]) for first, second in pairs]
    return await asyncio.to_thread(_cosines, embeddings, positions), sum(map(len, inputs))


def _cosines(embeddings: Embeddings, positions: list[tuple[int, int]]) -> list[float]:
    vectors = resize(embeddings, None)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    first, second = np.array(positions).T
    cosines: list[float] = (unit[first] * unit[second]).sum(axis=1).tolist()
    return cosines
