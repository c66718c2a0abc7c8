"""No request blocks the event loop: expensive bodies are sent to the app while a heartbeat measures it."""

import gc
import json
from collections.abc import AsyncIterator, Sequence

import pytest

from services.engine.base import ANYBODY, Embeddings, TextPrompts
from tests.apps import NewSite, Site, is_administration, post
from tests.fakes import FakeEngine, FakeTokenizer
from tests.heartbeat import Answer, held
from tools.faults.bombs import JSON_ROUTES, Bomb, bombs

LONGEST = 0.05  # seconds of CPU time
TRIES = 25  # on a busy machine CPU time is longer too: the shortest counts
ANYWHERE = ("/v1/chat/completions", "/v1/messages", "/predict")  # other routes use the same code
JSON = {"Content-Type": "application/json"}
QUIET = {"log": {"level": "ERROR"}}


class CoarseTokenizer(FakeTokenizer):
    """Five letters per token, like real tokenizers; bytes would be unrealistic millions of tokens."""

    all_special_ids: tuple[int, ...] = ()

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [0] * (len(text) // 5 + 1)

    def __call__(self, text: list[str], **options: object) -> dict[str, list[list[int]]]:
        return {"input_ids": [self.encode(each) for each in text]}


class FakeEmbedder(FakeEngine):
    dimensions = 384
    prompts = TextPrompts()  # type: ignore[assignment]  # of an embedder; those of a chat engine's jobs are not asked for

    async def embed(self, inputs: Sequence[Sequence[int]], owner: str = ANYBODY) -> Embeddings:
        return Embeddings(b"\0" * (4 * self.dimensions * len(inputs)), self.dimensions)


@pytest.fixture
async def site(new_site: NewSite) -> AsyncIterator[Site]:
    engine = FakeEmbedder("Hello", max_length=4096)
    engine.tokenizer = CoarseTokenizer()
    site = await new_site(build=engine.builder(), **QUIET)
    await held(site.app, "GET", "/health", b"")  # builds the middleware
    gc.collect()
    gc.freeze()  # as in the service: objects from before the first request are not collected
    yield site
    gc.unfreeze()


async def longest(site: Site, bomb: Bomb) -> Answer:
    """The shortest of several tries."""
    body = bomb.body()
    answer = await held(site.app, bomb.method, bomb.path, body)
    for _ in range(TRIES - 1):
        if answer.seconds < LONGEST:
            break
        answer = await held(site.app, bomb.method, bomb.path, body)
    return answer


async def test_no_body_blocks_the_event_loop(site: Site) -> None:
    holding = {}
    for bomb in bombs(ANYWHERE):
        answer = await longest(site, bomb)
        assert answer.status < 500, bomb
        if answer.seconds >= LONGEST:
            holding[str(bomb)] = answer.seconds
    assert holding == {}


async def test_all_routes_with_a_body_are_tested(site: Site) -> None:
    paths = site.app.openapi()["paths"]
    bodies = {path: of.get("post", {}).get("requestBody", {}).get("content", {}) for path, of in paths.items()}
    taking = {path for path, body in bodies.items() if "application/json" in body and "{" not in path}
    assert {path for path in taking if not is_administration("POST", path)} == {*JSON_ROUTES}
    for bomb in bombs():
        if bomb.name == "1,001 unknown keys":
            answer = await site.client.post(bomb.path, content=bomb.body(), headers=JSON)
            assert (answer.status_code, b"has more than 1000 keys" in answer.content) == (400, True), bomb


@pytest.fixture
async def long_items(site: Site) -> str:
    """A conversation of 40 items, 32 MB."""
    conversation = await post(site, "/v1/conversations")
    path = f"/v1/conversations/{conversation['id']}/items"
    items = [{"role": "user", "content": "word " * 160_000}] * 20
    for _ in range(2):
        await post(site, path, items=items)
    return path


async def test_page_of_long_items_does_not_block_the_event_loop(site: Site, long_items: str) -> None:
    for path, query in {
        long_items: b"limit=100",
        "/v1/conversations/search": b"query=word&limit=100",
        "/chat/get/messages/": b"limit=1000",
    }.items():
        answer = await held(site.app, "GET", path, b"", query)
        page = json.loads(answer.body)
        assert (answer.status, len(page["data"]), page["has_more"]) == (200, 1, True)
        assert answer.seconds < LONGEST
