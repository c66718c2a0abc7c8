"""What servers of each kind are asked for vectors and scores, and how their answers are read."""

import base64
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from services.engine.base import Pair, UpstreamAddress
from services.engine.remote.embedder import RemoteEmbedder, RemoteReranker, TextModel
from services.engine.remote.router import Router
from services.engine.remote.upstream import Upstream
from services.errors import EngineFailed, PromptTooLong, Unavailable
from tests.test_engine.fakes import Alphabet
from tests.test_engine.test_remote.servers import LLAMA_PAGES, SGLANG_PAGES, VLLM_PAGES, WIRES, WireServer

MODEL = TextModel(Alphabet(), max_length=64, dimensions=9)
VECTORS = np.array([[1.0, 2.0], [3.0, 4.0]], dtype="<f4")
FLOATS = {"data": [{"index": index, "embedding": VECTORS[index].tolist()} for index in (1, 0)]}
PACKED = {"data": [{"index": i, "embedding": base64.b64encode(VECTORS[i].tobytes()).decode()} for i in (0, 1)]}
SCORES = {"results": [{"index": 1, "relevance_score": 0.5}, {"index": 0, "relevance_score": 0.25}]}
LISTED = [{"index": each["index"], "score": each["relevance_score"]} for each in SCORES["results"]]
TWO = [Pair((3, 4), (0, 1), ("a", "b")), Pair((3, 5), (0, 1), ("a", "c"))]


def answering(pages: Any, answer: object, **options: Any) -> WireServer:
    return WireServer(pages, [json.dumps(answer).encode()], **options)


@asynccontextmanager
async def engine_at(kind: Any, *servers: WireServer) -> AsyncIterator[Any]:
    engine = kind(MODEL, Router([Upstream(UpstreamAddress(each.url), timeout_s=20) for each in servers]))
    try:
        yield engine
    finally:
        await engine.stop()


async def embedded(server: WireServer, inputs: Sequence[Sequence[int]], kind: Any = RemoteEmbedder) -> list[Any]:
    async with server.serving(), engine_at(kind, server) as engine:
        found = await engine.embed(inputs)
        return np.frombuffer(found.data, dtype="<f4").reshape(-1, found.dimensions).tolist()


@pytest.mark.parametrize("kind", WIRES)
async def test_token_ids_become_vectors(kind: str) -> None:
    is_packed = kind in ("vllm", "parley")
    server = answering(WIRES[kind][0], PACKED if is_packed else FLOATS)
    assert await embedded(server, [[3, 4], [5]]) == VECTORS.tolist()
    named = {} if kind == "parley" else {"model": "the-model"}
    form = "base64" if is_packed else "float"
    assert (server.requests[-1].path, server.body) == (
        "/v1/embeddings",
        {"input": [[3, 4], [5]], "encoding_format": form, **named},
    )


@pytest.mark.parametrize(("pages", "answer"), [(VLLM_PAGES, SCORES), (SGLANG_PAGES, LISTED), (LLAMA_PAGES, SCORES)])
async def test_texts_become_scores(pages: Any, answer: Any) -> None:
    server = answering(pages, answer)
    assert await embedded(server, TWO, RemoteReranker) == [[0.25], [0.5]]
    asked = {"query": "a", "documents": ["b", "c"], "model": "the-model"}
    assert (server.requests[-1].path, server.body) == ("/v1/rerank", asked)


async def test_each_query_is_a_request() -> None:
    server = answering(VLLM_PAGES, SCORES)
    pairs = [*TWO, *(Pair(pair, pair.types, ("z", pair.texts[1])) for pair in TWO)]
    assert await embedded(server, pairs, RemoteReranker) == [[0.25], [0.5]] * 2
    assert [request.body["query"] for request in server.requests] == ["a", "z"]


async def test_another_server_takes_over() -> None:
    broken, whole = answering(VLLM_PAGES, {}, status=503), answering(VLLM_PAGES, FLOATS)
    async with broken.serving(), whole.serving(), engine_at(RemoteEmbedder, broken, whole) as engine:
        assert engine.dimensions == 9
        assert (await engine.embed([[3], [4]])).dimensions == engine.dimensions == 2
        assert [(each.requests, each.failures) for each in engine.stats().upstreams] == [(1, 1), (1, 0)]


@pytest.mark.parametrize(
    ("answer", "status", "error"),
    [
        ({"data": FLOATS["data"][:1]}, 200, EngineFailed),
        ({"data": "no"}, 200, EngineFailed),
        ({"error": {"message": "maximum context length is 2 tokens"}}, 400, PromptTooLong),
        ({}, 503, Unavailable),
    ],
)
async def test_errors(answer: Any, status: int, error: type[Exception]) -> None:
    server = answering(VLLM_PAGES, answer, status=status, error=answer)
    with pytest.raises(error):
        await embedded(server, [[3, 4], [5]])


async def test_limits_are_the_servers_too() -> None:
    server = answering(VLLM_PAGES, FLOATS)
    async with server.serving(), engine_at(RemoteEmbedder, server) as engine:
        assert engine.max_length == 64
        await engine.embed([[3], [4]])
        assert engine.max_length == 48
        assert (await engine.embed([])).data == b""
