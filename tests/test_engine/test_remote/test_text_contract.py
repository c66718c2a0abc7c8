"""Vectors and scores of another Parley, to the request what those of models in this process are."""

from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from services.engine import build
from services.engine.base import UpstreamAddress
from services.engine.remote.embedder import RemoteEmbedder, RemoteReranker, read
from services.engine.remote.router import Router
from services.engine.remote.upstream import Upstream
from tests.apps import NewSite, Site, post, refusal
from tests.fakes import FakeEngine
from tests.test_controller import test_rerank_controller as rerank

folders = rerank.folders
ENGINES: dict[str, Any] = {"embedding": RemoteEmbedder, "reranker": RemoteReranker}


async def behind(new_site: NewSite, **given: Any) -> Site:
    """A service whose upstream has these models."""
    upstream = await new_site(build=build, **given)

    def remote(kind: str, /, *, source: str, **options: Any) -> Any:
        if kind == "chat":
            return FakeEngine()
        transport = httpx2.ASGITransport(upstream.app)
        address = UpstreamAddress("http://localhost", kind="parley")
        return ENGINES[kind](read(source), Router([Upstream(address, timeout_s=60, transport=transport)]))

    return await new_site(build=remote, **given)


@pytest.fixture
async def embedding_site(new_site: NewSite, folders: dict[str, Path]) -> Site:
    return await behind(new_site, embedding=rerank.settings(folders["embedding"], "embedding"))


@pytest.fixture
async def site(new_site: NewSite, folders: dict[str, Path]) -> Site:
    given = {kind: rerank.settings(folder, kind) for kind, folder in folders.items()}
    return await behind(new_site, embedding=given["embedding"], models=[given["reranker"]])


test_by_cross_encoder = rerank.test_by_cross_encoder
test_by_similarity = rerank.test_by_similarity_where_there_is_no_cross_encoder
test_the_model_that_is_named_decides = rerank.test_the_model_that_is_named_decides
test_the_best_with_their_documents = rerank.test_the_best_with_their_documents
test_scores = rerank.test_scores
test_what_is_refused = rerank.test_what_is_refused


async def test_embeddings(site: Site, embedding_site: Site, new_site: NewSite, folders: dict[str, Path]) -> None:
    local = await new_site(build=build, embedding=rerank.settings(folders["embedding"], "embedding"))
    for fields in ({"input": ["abcd", "x"]}, {"input": [[3, 4, 5], [6]]}, {"input": "abc", "dimensions": 4}):
        answers = [await post(each, "/v1/embeddings", **fields) for each in (local, embedding_site)]
        vectors = [[np.array(each["embedding"]) for each in answer.pop("data")] for answer in answers]
        for one, other in zip(*vectors, strict=True):
            assert other == pytest.approx(one, abs=1e-6)
        assert answers[0] == answers[1]
    assert await refusal(embedding_site, "/v1/embeddings", input="a" * 200) == "input"
    page = (await embedding_site.client.get("/metrics")).text
    assert 'parley_upstream_requests_total{model="tiny-embedding",upstream="localhost"} 3.0' in page


async def test_texts_that_would_be_cut_are_refused(site: Site) -> None:
    fields = {"query": "ab", "documents": ["cde" + "f" * 40], "truncate_prompt_tokens": 8}
    assert await refusal(site, "/v1/rerank", **fields) == "truncate_prompt_tokens"
    assert (await post(site, "/v1/rerank", **{**fields, "documents": ["c"]}))["results"]
