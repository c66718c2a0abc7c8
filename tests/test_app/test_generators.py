"""A token passes few generators between the engine and the socket: each is resumed, and awaited, for each token."""

import sys
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any
from weakref import WeakSet

import pytest

from services.engine.base import Job, Piece
from tests.agents.apps import THINKS, Tokenizer
from tests.apps import NewSite
from tests.fakes import FakeEngine, FakeStream, NotingEngine

MOST = 5
# of tasks that run beside: those of the database, and the reader of a background answer, who gets what is stored
BESIDE = {"Database.read", "Database.write", "Store.reading", "Store.writing", "StoredResponseService.follow"}
HI = [{"role": "user", "content": "Hi"}]
TALK = [*HI, {"role": "assistant", "content": "word " * 600}, *HI]
COMPACTING = {"context_management": [{"type": "compaction", "compact_threshold": 2_000}]}

REQUESTS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"messages": HI}),
    ("/v1/chat/completions", {"messages": HI, "n": 2}),
    ("/v1/completions", {"prompt": "Hi"}),
    ("/v1/completions", {"prompt": "Hi", "n": 2, "max_tokens": 0, "echo": True}),
    ("/v1/responses", {"input": HI}),
    ("/v1/responses", {"input": HI, "background": True}),
    ("/v1/responses", {"input": TALK, "truncation": "auto", **COMPACTING}),
    ("/v1/messages", {"messages": HI, "max_tokens": 9}),
    ("/v1/messages", {"messages": HI, "max_tokens": 9, "thinking": {"type": "adaptive"}}),
    ("/api/chat", {"messages": HI}),
    ("/api/generate", {"prompt": "Hi"}),
    ("/predict", {"input": "Hi"}),
    ("/chat/new/message/", {"prompt": "Hi"}),
]


class Chains:
    """The generators that wait for a token whenever one is read; those that only clean up are not running then."""

    def __init__(self) -> None:
        self.longest: set[str] = set()
        self._begun = WeakSet[AsyncGenerator[Any, Any]]()

    @contextmanager
    def watching(self) -> Iterator[None]:
        before = sys.get_asyncgen_hooks()

        def begin(generator: AsyncGenerator[Any, Any]) -> None:
            self._begun.add(generator)
            if before.firstiter:
                before.firstiter(generator)

        sys.set_asyncgen_hooks(firstiter=begin)
        try:
            yield
        finally:
            sys.set_asyncgen_hooks(firstiter=before.firstiter)

    def look(self) -> None:
        """The choices of one answer have a generator each: all that run the same code are one link of the chain."""
        running: set[CodeType] = {each.ag_code for each in self._begun if each.ag_running}  # type: ignore[attr-defined]
        running = {code for code in running if code.co_qualname not in BESIDE}
        self.longest = max(self.longest, {code.co_qualname for code in running}, key=len)

    def check(self) -> None:
        assert {"ChatService._run", "CompletionService._run"} & self.longest
        # the socket's own reads its source only behind the first item
        assert len(self.longest | {"_body"}) <= MOST, self.longest


@pytest.fixture
def chains() -> Chains:
    return Chains()


@pytest.fixture
def engine(chains: Chains) -> FakeEngine:
    class WatchedStream(FakeStream):
        async def asend(self, value: None, /) -> Piece:
            chains.look()
            return await super().asend(value)

    class WatchedEngine(NotingEngine):
        async def submit(self, job: Job) -> FakeStream:
            self.running.discard(stream := await super().submit(job))
            self.running.add(watched := WatchedStream(self, stream.steps))
            return watched

    engine = WatchedEngine("Go ", "on.")
    engine.tokenizer = Tokenizer(THINKS)
    return engine


@pytest.mark.parametrize(("path", "body"), REQUESTS)
async def test_a_token_passes_few_generators(
    new_site: NewSite, chains: Chains, path: str, body: dict[str, Any]
) -> None:
    site = await new_site(specs=["anthropic", "ollama"])
    with chains.watching():
        answer = await site.client.post(path, json={"stream": True, **body})
    assert answer.status_code == 200, answer.text
    chains.check()


async def test_a_browser_gets_it_through_no_more(new_site: NewSite, chains: Chains) -> None:
    site = await new_site()
    with chains.watching():
        answer = await site.client.get("/chat/stream", params={"prompt": "Hi"})
    assert answer.status_code == 200, answer.text
    chains.check()
