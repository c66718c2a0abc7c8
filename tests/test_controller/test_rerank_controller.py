"""POST /v1/rerank and /v1/score with small real models: a cross-encoder, or an embedder where there is none."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from services.engine import build
from tests.apps import NewSite, Site, post, refusal
from tests.test_engine import tiny_encoders

DOCUMENTS = ["abc", "xyz", "ab", "q"]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    found = {"reranker": tmp_path_factory.mktemp("reranker"), "embedding": tmp_path_factory.mktemp("embedder")}
    tiny_encoders.save_reranker(found["reranker"])
    tiny_encoders.save_embedder(found["embedding"])
    return found


def settings(folder: Path, kind: str) -> dict[str, str]:
    return {"name": str(folder), "id": f"tiny-{kind}", "kind": kind, "device": "cpu", "dtype": "float32"}


@pytest.fixture
async def embedding_site(new_site: NewSite, folders: dict[str, Path]) -> Site:
    return await new_site(build=build, embedding=settings(folders["embedding"], "embedding"))


@pytest.fixture
async def site(new_site: NewSite, folders: dict[str, Path]) -> Site:
    given = {kind: settings(folder, kind) for kind, folder in folders.items()}
    return await new_site(build=build, embedding=given["embedding"], models=[given["reranker"]])


@torch.inference_mode()
def cross_encoded(folder: Path, pairs: list[tuple[str, str]]) -> list[float]:
    model, tokenizer = tiny_encoders.save_reranker(folder), tiny_encoders.tokenizer()
    return [float(model(**tokenizer(*pair, return_tensors="pt")).logits.sigmoid()) for pair in pairs]


@torch.inference_mode()
def cosines(folder: Path, pairs: list[tuple[str, str]]) -> list[float]:
    model, tokenizer = tiny_encoders.save_embedder(folder), tiny_encoders.tokenizer()

    def vector(text: str) -> torch.Tensor:
        return normalize(model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0), dim=0)

    return [float(vector(one) @ vector(other)) for one, other in pairs]


def ranked(scores: list[float]) -> list[int]:
    return [int(index) for index in np.argsort([-score for score in scores])]


@pytest.mark.parametrize("path", ["/v1/rerank", "/rerank", "/v2/rerank"])
async def test_by_cross_encoder(site: Site, tmp_path: Path, path: str) -> None:
    answer = await post(site, path, query="abcd", documents=DOCUMENTS)
    scores = cross_encoded(tmp_path, [("abcd", text) for text in DOCUMENTS])
    assert [result["index"] for result in answer["results"]] == ranked(scores)
    found = [result["relevance_score"] for result in answer["results"]]
    assert found == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
    assert (answer["method"], answer["model"]) == ("cross-encoder", "tiny-reranker")
    tokens = sum(3 + 4 + len(text) for text in DOCUMENTS)
    assert answer["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    assert set(answer["results"][0]) == {"index", "relevance_score"}


async def test_by_similarity_where_there_is_no_cross_encoder(embedding_site: Site, tmp_path: Path) -> None:
    answer = await post(embedding_site, "/v1/rerank", query="abcd", documents=[{"text": "abc"}, *DOCUMENTS[1:]])
    scores = cosines(tmp_path, [("abcd", text) for text in DOCUMENTS])
    assert [result["index"] for result in answer["results"]] == ranked(scores)
    found = [result["relevance_score"] for result in answer["results"]]
    assert found == pytest.approx(sorted(scores, reverse=True), abs=1e-5)
    assert (answer["method"], answer["model"]) == ("embedding", "tiny-embedding")
    assert answer["usage"]["prompt_tokens"] == sum(2 + len(text) for text in ["abcd", *DOCUMENTS])  # each read once


async def test_the_model_that_is_named_decides(site: Site) -> None:
    fields = {"query": "a", "documents": ["b"]}
    assert (await post(site, "/v1/rerank", model="tiny-embedding", **fields))["method"] == "embedding"
    assert (await post(site, "/v1/rerank", model="default", **fields))["method"] == "cross-encoder"
    assert await refusal(site, "/v1/rerank", model="fake-chat", **fields) == "model"
    missing = await site.client.post("/v1/rerank", json={"model": "another", **fields})
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert await refusal(site, "/v1/embeddings", model="tiny-reranker", input="a") == "model"


async def test_the_best_with_their_documents(site: Site) -> None:
    whole = await post(site, "/v1/rerank", query="abcd", documents=DOCUMENTS)
    best = await post(site, "/v1/rerank", query="abcd", documents=DOCUMENTS, top_n=2, return_documents=True)
    assert [result["index"] for result in best["results"]] == [result["index"] for result in whole["results"][:2]]
    assert [result["document"] for result in best["results"]] == [
        {"text": DOCUMENTS[result["index"]]} for result in best["results"]
    ]
    assert len((await post(site, "/v1/rerank", query="a", documents=["b"], top_n=9))["results"]) == 1


@pytest.mark.parametrize("path", ["/v1/score", "/score"])
@pytest.mark.parametrize(
    ("texts", "pairs"),
    [
        ({"text_1": "ab", "text_2": "cd"}, [("ab", "cd")]),
        ({"text_1": "ab", "text_2": ["cd", "ef"]}, [("ab", "cd"), ("ab", "ef")]),
        ({"text_1": ["ab", "x"], "text_2": ["cd", "ef"]}, [("ab", "cd"), ("x", "ef")]),
        ({"queries": "ab", "documents": ["cd", "ef"]}, [("ab", "cd"), ("ab", "ef")]),
        ({"queries": ["ab"], "items": ["cd", "ef"]}, [("ab", "cd"), ("ab", "ef")]),
    ],
    ids=str,
)
async def test_scores(site: Site, tmp_path: Path, path: str, texts: Any, pairs: list[tuple[str, str]]) -> None:
    for model, plain in (("tiny-reranker", cross_encoded), ("tiny-embedding", cosines)):
        answer = await post(site, path, model=model, **texts)
        assert answer["object"] == "list"
        assert [(each["object"], each["index"]) for each in answer["data"]] == [
            ("score", index) for index in range(len(pairs))
        ]
        folder = tmp_path / model
        assert [each["score"] for each in answer["data"]] == pytest.approx(plain(folder, pairs), abs=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/rerank", {"documents": ["a"]}, "query"),
        ("/v1/rerank", {"query": "a"}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": []}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": "b"}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": ["b", 1]}, "documents.1"),
        ("/v1/rerank", {"query": "a", "documents": [{"image": "b"}]}, "documents.0"),
        ("/v1/rerank", {"query": "a", "documents": ["b"] * 1001}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": 0}, "top_n"),
        ("/v1/rerank", {"query": "a", "documents": ["b", "c" * 40]}, "documents.1"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "truncate_prompt_tokens": 33}, "truncate_prompt_tokens"),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c", "d", "e"]}, "text_1"),
        ("/v1/score", {"text_1": "a", "text_2": ["c" * 40]}, "text_2.0"),
        ("/v1/score", {"text_1": "a"}, "text_2"),
        ("/v1/score", {"text_1": "a", "text_2": 5}, "text_2"),
    ],
    ids=str,
)
async def test_what_is_refused(site: Site, embedding_site: Site, path: str, body: dict[str, Any], param: str) -> None:
    for each in (site, embedding_site):
        assert await refusal(each, path, **body) == param


async def test_long_documents_are_cut_if_asked(site: Site, embedding_site: Site) -> None:
    fields = {"query": "ab", "documents": ["cde" + "f" * 40], "truncate_prompt_tokens": 8}
    cut = await post(site, "/v1/rerank", **fields)
    assert cut["usage"]["prompt_tokens"] == 8
    # [CLS] a b [SEP] c d e [SEP]
    same = await post(site, "/v1/rerank", query="ab", documents=["cde"])
    assert cut["results"][0]["relevance_score"] == pytest.approx(same["results"][0]["relevance_score"], abs=1e-5)
    assert (await post(embedding_site, "/v1/rerank", **fields))["usage"]["prompt_tokens"] == 4 + 8


async def test_unknown_keys_are_named(site: Site) -> None:
    answer = await site.client.post("/v1/rerank", json={"query": "a", "documents": ["b"], "zebra": 1})
    assert answer.headers["x-parley-ignored"] == "zebra"
