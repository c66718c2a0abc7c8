"""POST /v1/embeddings and /embeddings over HTTP, with a fake service."""

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from app.common import dependencies
from app.common.auth import Caller
from app.common.ignored import UnknownKeys
from app.controller.embeddings_controller import router
from schemas.embeddings_schema import EmbeddingRequest

ANSWER = b'{"object":"list","data":[],"model":"m","usage":{"prompt_tokens":0,"total_tokens":0}}'


class Embedder:
    def __init__(self) -> None:
        self.requests: list[EmbeddingRequest] = []

    async def create(self, request: EmbeddingRequest, owner: str) -> bytes:
        assert owner == "me"
        self.requests.append(request)
        return ANSWER


@pytest.fixture
def embedder() -> Embedder:
    return Embedder()


@pytest.fixture
def client(embedder) -> TestClient:
    app = FastAPI()
    app.include_router(router)
    app.dependency_overrides[dependencies.Embedder.__metadata__[0].dependency] = lambda: embedder
    app.dependency_overrides[dependencies.UnknownKeys.__metadata__[0].dependency] = lambda: UnknownKeys(strict=False)
    app.dependency_overrides[dependencies.Caller.__metadata__[0].dependency] = lambda: Caller("me")
    return TestClient(app)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embeddings"])
def test_answer_is_passed_on_as_json(client, embedder, path):
    answer = client.post(path, json={"input": "a", "model": "m", "encoding_format": "base64"})
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/json")
    assert answer.content == ANSWER
    assert embedder.requests == [EmbeddingRequest(input="a", model="m", encoding_format="base64")]


def test_a_key_that_nobody_knows_is_named_in_a_header(client):
    assert client.post("/v1/embeddings", json={"input": "a", "mood": "good"}).headers["x-parley-ignored"] == "mood"


def test_documentation_names_the_shapes(client):
    document = client.get("/openapi.json").json()
    operation = document["paths"]["/v1/embeddings"]["post"]
    schema = document["components"]["schemas"]["EmbeddingRequest"]["properties"]["input"]
    assert operation["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/EmbeddingList")
    assert len(schema["anyOf"]) == 4
    assert schema["default"] == [""]


def test_a_wrong_item_is_named_in_the_errors_location(client):
    (error,) = client.post("/v1/embeddings", json={"input": ["a", 5]}).json()["detail"]
    assert error["loc"] == ["body", "input", 1]
