"""Vectors and scores that other servers compute: texts are tokenised and checked here."""

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np

from services.engine.base import ANYBODY, Embeddings, EngineStats, Job, Pair, TextPrompts, Tokenizer, UpstreamAddress
from services.engine.embedding.sentence_config import lower_case, text_prompts
from services.engine.remote import model_info
from services.engine.remote.discovery import Server
from services.engine.remote.kinds.base import UnexpectedAnswer
from services.engine.remote.router import Router
from services.engine.remote.upstream import Upstream
from services.errors import Overloaded, Unavailable, UnsupportedParameter

EMBEDDINGS = "/v1/embeddings"
RERANK = "/v1/rerank"
WIDTHS = ("hidden_size", "d_model", "n_embd", "dim")  # as configurations call the size of a token's vector

Body = Callable[[Server], dict[str, Any]]


@dataclass(frozen=True, slots=True)
class TextModel:
    """What is read of an embedding model or a reranker."""

    tokenizer: Tokenizer
    max_length: int
    dimensions: int
    prompts: TextPrompts = field(default_factory=TextPrompts)


def read(source: str) -> TextModel:
    info = model_info.read(source)
    sentence = model_info.read_json(source, "sentence_bert_config.json")
    pooling = model_info.read_json(source, "1_Pooling/config.json")
    config = model_info.read_json(source, "config.json")
    if sentence.get("do_lower_case"):
        lower_case(info.tokenizer)
    width = pooling.get("word_embedding_dimension") or next((config[each] for each in WIDTHS if each in config), 0)
    length = min(info.max_length, sentence.get("max_seq_length") or info.max_length)
    prompts = text_prompts(model_info.read_json(source, "config_sentence_transformers.json"), pooling)
    return TextModel(info.tokenizer, length, int(width), prompts)


class _Remote:
    device, dtype = "remote", "remote"

    def __init__(self, model: TextModel, router: Router) -> None:
        self.tokenizer = model.tokenizer
        self.prompts = model.prompts
        self.dimensions = model.dimensions
        self._max_length = model.max_length
        self._router = router

    @classmethod
    def load(cls, *, source: str, upstreams: Sequence[UpstreamAddress], timeout_s: float = 300) -> Any:
        """`timeout_s`: without a byte from an upstream. None of them needs to be there yet."""
        router = Router([Upstream(address, timeout_s=timeout_s) for address in upstreams])
        return cls(read(source), router)

    @property
    def max_length(self) -> int:
        known = (upstream.named_length for upstream in self._router.upstreams)
        return min([self._max_length, *(length for length in known if length)])

    def start(self) -> None:
        self._router.start()

    async def stop(self) -> None:
        await self._router.stop()

    def stats(self) -> EngineStats:
        upstreams = tuple(upstream.stats() for upstream in self._router.upstreams)
        running, stalled = sum(each.running for each in upstreams), not any(each.healthy for each in upstreams)
        return EngineStats(running=running, stalled=stalled, upstreams=upstreams)

    async def _fetch(self, path: str, body: Body, read: Callable[[Any], list[Any]], job: Job) -> list[Any]:
        """From the least busy upstream, or from another one if that cannot answer."""
        *others, last = self._router.by_load()
        for upstream in others:
            try:
                return await upstream.fetch(path, body, read, job)
            except (Unavailable, Overloaded):
                continue
        return await last.fetch(path, body, read, job)


class RemoteEmbedder(_Remote):
    """An `EmbeddingEngine`: token ids go out. Vectors are as the server pools and normalises them."""

    async def embed(self, inputs: Sequence[Sequence[int]], owner: str = ANYBODY) -> Embeddings:
        if not inputs:
            return Embeddings(b"", self.dimensions)

        def body(server: Server) -> dict[str, Any]:
            form = "base64" if server.kind.packs_vectors else "float"
            return {"input": [list(row) for row in inputs], "encoding_format": form}

        def read(answer: Any) -> list[bytes]:
            return _in_order([(each["index"], _vector(each["embedding"])) for each in answer["data"]], len(inputs))

        longest = max(inputs, key=len)
        rows = await self._fetch(EMBEDDINGS, body, read, Job("embeddings", tuple(longest), param="input"))
        if len({len(row) for row in rows}) != 1:
            raise Unavailable("The model's server sent vectors of different sizes")
        self.dimensions = len(rows[0]) // 4
        return Embeddings(b"".join(rows), self.dimensions)


class RemoteReranker(_Remote):
    """An `EmbeddingEngine` of Pairs, whose texts go out: a request for each query. Scores are the server's own."""

    async def embed(self, inputs: Sequence[Sequence[int]], owner: str = ANYBODY) -> Embeddings:
        pairs = [pair for pair in inputs if isinstance(pair, Pair)]
        if any(pair.is_cut for pair in pairs):
            raise UnsupportedParameter("truncate_prompt_tokens", "cuts a text, which goes to another server as a whole")
        scores: list[float] = []
        for _, group in groupby(pairs, key=lambda pair: pair.texts[0]):
            scores += await self._scores(list(group))
        return Embeddings(np.asarray(scores, dtype="<f4").tobytes(), 1)

    async def _scores(self, pairs: Sequence[Pair]) -> list[float]:
        texts = {"query": pairs[0].texts[0], "documents": [pair.texts[1] for pair in pairs]}

        def body(server: Server) -> dict[str, Any]:
            return texts

        def read(answer: Any) -> list[float]:
            results = answer if isinstance(answer, list) else answer["results"]
            return _in_order([(each["index"], _score(each)) for each in results], len(pairs))

        longest = max(pairs, key=len)
        return await self._fetch(RERANK, body, read, Job("rerank", tuple(longest), param="documents"))


def _vector(value: Any) -> bytes:
    return base64.b64decode(value) if isinstance(value, str) else np.asarray(value, dtype="<f4").tobytes()


def _score(result: Mapping[str, Any]) -> float:
    return float(result["relevance_score"] if "relevance_score" in result else result["score"])


def _in_order(found: Sequence[tuple[int, Any]], number: int) -> list[Any]:
    """Raises UnexpectedAnswer unless there is one for each input."""
    by_index = dict(found)
    if sorted(by_index) != list(range(number)):
        raise UnexpectedAnswer("not one answer for each input")
    return [by_index[index] for index in range(number)]
