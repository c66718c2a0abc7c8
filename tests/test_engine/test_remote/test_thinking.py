"""A limit to thinking, in two requests. In these answers x is the end of thinking and w its begin."""

from typing import Any

import pytest

from services.engine.base import ThinkingLimit
from tests.test_engine.fakes import END, Alphabet, job
from tests.test_engine.test_remote.engines import engine_at, read
from tests.test_engine.test_remote.servers import VLLM_PAGES, Request, WireServer, completions

BEGIN, STOP = Alphabet().encode("wx")


class Parts(WireServer):
    """Answers each request with its own part, as long as it may be."""

    def __init__(self, *parts: str) -> None:
        super().__init__(VLLM_PAGES)
        self._parts = iter(parts)

    async def _answer(self, request: Request, *streams: Any) -> bool:
        wanted = [END if letter == "." else ord(letter) - ord("a") for letter in next(self._parts)]
        tokens = wanted[: request.body["max_tokens"]]
        is_whole = tokens[-1] == END
        self.steps = completions(*([token] for token in tokens), finish="stop" if is_whole else "length", cached=1)
        return await super()._answer(request, *streams)


@pytest.mark.parametrize(
    ("limit", "parts", "expected", "prompts"),
    [
        (ThinkingLimit(3, STOP), ["abc", "de."], "abcxde", ["", "abcx"]),  # cut
        (ThinkingLimit(3, STOP), ["axb", "cd."], "axbcd", ["", "axb"]),  # over before, and going on
        (ThinkingLimit(3, STOP), ["ax."], "ax", [""]),  # and whole
        (ThinkingLimit(0, STOP), ["ab."], "xab", ["x"]),  # none at all
        (ThinkingLimit(2, STOP, BEGIN), ["wab", "c."], "wabxc", ["", "wabx"]),
        (ThinkingLimit(2, STOP, BEGIN), ["abc", "d."], "abcd", ["", "abc"]),  # which has not begun
        (ThinkingLimit(0, STOP, BEGIN), ["w", "c."], "wxc", ["", "wx"]),
    ],
)
async def test_thinking_ends(limit: ThinkingLimit, parts: list[str], expected: str, prompts: list[str]) -> None:
    server = Parts(*parts)
    async with server.serving(), engine_at(server) as engine:
        pieces = await read(await engine.submit(job("q", thinking=limit)))
    assert "".join(piece.text for piece in pieces) == expected
    assert (pieces[-1].finish, pieces[-1].cached_tokens) == ("stop", 1)
    sent = [Alphabet().decode(request.body["prompt"]) for request in server.requests]
    assert sent == ["q" + prompt for prompt in prompts]


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5])
async def test_answer_is_no_longer_than_it_may_be(length: int) -> None:
    server = Parts("abc", "defgh")
    async with server.serving(), engine_at(server) as engine:
        pieces = await read(await engine.submit(job("q", thinking=ThinkingLimit(3, STOP), max_tokens=length)))
    assert "".join(piece.text for piece in pieces) == "abcxd"[:length]
    assert pieces[-1].finish == "length"
