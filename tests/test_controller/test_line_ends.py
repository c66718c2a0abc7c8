"""Text with line ends that JSON leaves as they are reaches readers of lines whole, by every stream."""

import asyncio
import json
from collections.abc import AsyncIterable, Callable
from typing import Any

import pytest
import requests
from anthropic import AsyncAnthropic
from ollama import AsyncClient
from openai import AsyncOpenAI

from services.errors import EngineFailed
from tests.apps import Site
from tests.fakes import FakeEngine

PIECES = ("one\u2028", "two\u2029", "three\x85", "four é")
TEXT = "".join(PIECES)
HI = [{"role": "user", "content": "hi"}]
ESCAPES = (b"\\u2028", b"\\u2029", b"\\u0085")

STREAMS: dict[str, tuple[dict[str, Any], Callable[[Any], str]]] = {
    "/v1/chat/completions": (
        {"messages": HI, "stream": True},
        lambda line: str(line["choices"][0]["delta"].get("content", "")),
    ),
    "/v1/completions": ({"prompt": "hi", "stream": True}, lambda line: str(line["choices"][0]["text"])),
    "/v1/responses": (
        {"input": "hi", "stream": True},
        lambda line: str(line["delta"]) if line["type"] == "response.output_text.delta" else "",
    ),
    "/v1/messages": (
        {"messages": HI, "max_tokens": 9, "stream": True},
        lambda line: str(line.get("delta", {}).get("text", "")),
    ),
    "/api/chat": ({"messages": HI}, lambda line: str(line["message"]["content"])),
    "/api/generate": ({"prompt": "hi"}, lambda line: str(line["response"])),
    "/predict": ({"input": "hi", "stream": True}, lambda line: str(line["output"])),
    "/chat/new/message/": ({"prompt": "hi", "stream": True}, lambda line: str(line.get("text") or "")),
}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(*PIECES)


def data(lines: list[str]) -> list[Any]:
    """What is said on each line that says something; it fails where a line was broken."""
    payloads = [line.removeprefix("data: ") for line in lines if line and not line.startswith((":", "event: "))]
    return [json.loads(line) for line in payloads if line != "[DONE]"]


@pytest.mark.parametrize("path", STREAMS)
async def test_lines_are_whole_to_httpx(server: Site, path: str) -> None:
    body, text = STREAMS[path]
    async with server.client.stream("POST", path, json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        lines = [line async for line in answer.aiter_lines()]
    assert "".join(map(text, data(lines))) == TEXT


@pytest.mark.parametrize("path", STREAMS)
async def test_lines_are_whole_to_requests(server: Site, path: str) -> None:
    body, text = STREAMS[path]
    lines, raw = await asyncio.to_thread(_read_by_requests, f"{server.client.base_url}{path}", body)
    assert "".join(map(text, data(lines))) == TEXT
    assert all(escape in raw for escape in ESCAPES)
    assert "é".encode() in raw  # nothing else is escaped


def _read_by_requests(url: str, body: dict[str, Any]) -> tuple[list[str], bytes]:
    with requests.post(url, json=body, stream=True, timeout=60) as answer:
        answer.encoding = "utf-8"
        lines = list(answer.iter_lines(decode_unicode=True))
    return lines, requests.post(url, json=body, timeout=60).content


async def test_an_error_in_mid_answer_is_one_line(server: Site, engine: FakeEngine) -> None:
    engine.script = ("one", EngineFailed("broken\u2028here"))
    async with server.client.stream("POST", "/api/chat", json={"messages": HI}) as answer:
        lines = [line async for line in answer.aiter_lines()]
    assert data(lines)[-1] == {"error": "broken\u2028here"}


async def _joined(texts: AsyncIterable[str | None]) -> str:
    return "".join([text or "" async for text in texts])


async def test_official_clients_read_all_of_it(server: Site) -> None:
    url = str(server.client.base_url)
    async with AsyncClient(url) as ollama:
        chat = await ollama.chat("default", HI, stream=True)
        assert await _joined(line.message.content async for line in chat) == TEXT
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="any") as openai:
        chunks = await openai.chat.completions.create(model="default", messages=HI, stream=True)  # type: ignore[call-overload]
        assert await _joined(chunk.choices[0].delta.content async for chunk in chunks) == TEXT
    async with (
        AsyncAnthropic(base_url=url, api_key="any") as anthropic,
        anthropic.messages.stream(model="default", max_tokens=9, messages=HI) as payloads,  # type: ignore[arg-type]
    ):
        assert await payloads.get_final_text() == TEXT


async def test_a_browser_gets_the_text_unescaped(server: Site) -> None:
    """`EventSource` ends no line there, and would show an escape to people."""
    answer = await server.client.get("/chat/stream", params={"prompt": "hi"})
    assert "\u2028" in answer.text
    assert "\\u2028" not in answer.text
