"""Refusals, limits and hints in the words of the protocol that was asked."""

from typing import Any

import pytest

from services.engine.base import GrammarSpec, Job
from services.errors import InvalidRequest
from tests.apps import Site
from tests.fakes import FakeEngine, FakeStream
from tests.pictures import data_url, encoded

HI = [{"role": "user", "content": "hi"}]
PNG = data_url(encoded()).partition(",")[2]
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": HI},
    "/v1/messages": {"messages": HI, "max_tokens": 9},
    "/v1/messages/count_tokens": {"messages": HI},
    "/api/chat": {"messages": HI, "stream": False},
    "/api/generate": {"prompt": "hi", "stream": False},
}


async def post(site: Site, path: str, **fields: Any) -> Any:
    return await site.client.post(path, json={**ROUTES[path], **fields})


def message(answer: Any) -> str:
    error = answer.json()["error"]
    return str(error if isinstance(error, str) else error["message"])


def anthropic_tool(name: str = "f", **fields: Any) -> dict[str, Any]:
    return {"name": name, "input_schema": {"type": "object"}, **fields}


def tool(name: str = "f", **fields: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": {"type": "object"}, **fields}}


WRONG_SCHEMA = {"type": "object", "properties": {"a": {"type": "robot"}}}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        ("/v1/messages", {"tools": [anthropic_tool(input_schema=WRONG_SCHEMA)]}, "tools.0.input_schema"),
        ("/v1/messages", {"tools": [anthropic_tool(), anthropic_tool()]}, "tools.1.name"),
        ("/v1/messages", {"tools": [{"type": "bash_20250124", "name": "b"}, anthropic_tool(input_schema=WRONG_SCHEMA)]}, "tools.1.input_schema"),  # noqa: E501
        ("/v1/messages", {"output_config": {"effort": "huge"}}, "output_config.effort"),
        ("/v1/messages", {"system": "s", "messages": [{"role": "user", "content": [{"type": "text", "text": "x"}, IMAGE]}]}, "messages.0.content.1"),  # noqa: E501
        ("/v1/messages/count_tokens", {"system": "s", "messages": [{"role": "user", "content": [IMAGE]}]}, "messages.0.content.0"),  # noqa: E501
        ("/v1/messages/count_tokens", {"tools": [anthropic_tool(input_schema=WRONG_SCHEMA)]}, "tools.0.input_schema"),
        ("/api/chat", {"tools": [tool(parameters=WRONG_SCHEMA)]}, "tools.0.function.parameters"),
        ("/api/chat", {"messages": [{"role": "user", "content": "x", "images": [PNG]}]}, "messages.0.images.0"),
        ("/api/chat", {"options": {"seed": 2**70}}, "options.seed"),
        ("/api/chat", {"think": "huge"}, "think"),
        ("/api/generate", {"images": [PNG], "system": "s"}, "images.0"),
    ],
)  # fmt: skip
async def test_parameters_are_named_as_the_protocol_does(
    site: Site, path: str, fields: dict[str, Any], named: str
) -> None:
    answer = await post(site, path, **fields)
    assert answer.status_code == 400, answer.text
    assert message(answer).startswith(f"'{named}'")
    assert not any(word in message(answer) for word in ("image_url", "response_format", "reasoning_effort"))


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        ("/v1/chat/completions", {"response_format": {"type": "json_object"}}, "response_format"),
        ("/v1/messages", {"output_config": {"format": {"type": "json_schema", "schema": {}}}}, "output_config.format"),
        ("/v1/messages", {"output_format": {"type": "json_schema", "schema": {}}}, "output_config.format"),
        ("/api/chat", {"format": "json"}, "format"),
        ("/api/chat", {"format": "json", "stream": True}, "format"),
        ("/api/generate", {"format": {"type": "object"}}, "format"),
    ],
)
async def test_so_does_what_the_engine_refuses(
    site: Site, engine: FakeEngine, monkeypatch: pytest.MonkeyPatch, path: str, fields: dict[str, Any], named: str
) -> None:
    async def submit(job: Job) -> FakeStream:
        assert isinstance(job.sampling.grammar, GrammarSpec)
        raise InvalidRequest("'%s' is too large", job.sampling.grammar.param)

    monkeypatch.setattr(engine, "submit", submit)
    answer = await post(site, path, **fields)
    assert (answer.status_code, message(answer)) == (400, f"'{named}' is too large")


TOO_LONG = {
    "/v1/chat/completions": "This model's maximum context length is 10 tokens. However, your messages resulted in 21 "
    "tokens. Please reduce the length of the messages.",
    "/v1/messages": "prompt is too long: 21 tokens > 10 maximum",
    "/api/chat": "the input length exceeds the context length: 21 tokens > 10",
    "/api/generate": "the input length exceeds the context length: 21 tokens > 10",
}


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "streamed"])
@pytest.mark.parametrize("path", TOO_LONG)
async def test_prompt_too_long_has_the_message_clients_match(
    site: Site, engine: FakeEngine, path: str, stream: bool
) -> None:
    engine.max_length = 10
    answer = await post(site, path, stream=stream)
    assert (answer.status_code, message(answer)) == (400, TOO_LONG[path])


LONG_NAME = "mcp__" + "n" * 123
MANY = range(200)
STOPS = [f"stop {index}" for index in range(12)]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/messages", {"tools": [anthropic_tool(LONG_NAME, description="d" * 20_000)]}),
        ("/v1/messages", {"tools": [anthropic_tool(f"f{index}") for index in MANY]}),
        ("/v1/messages", {"stop_sequences": STOPS}),
        ("/v1/messages/count_tokens", {"tools": [anthropic_tool(LONG_NAME)]}),
        ("/api/chat", {"tools": [tool(LONG_NAME, description="d" * 20_000)]}),
        ("/api/chat", {"tools": [tool(f"f{index}") for index in MANY]}),
        ("/api/chat", {"options": {"stop": STOPS}}),
        ("/v1/chat/completions", {"tools": [tool(description="d" * 20_000)]}),
    ],
    ids=range(8),
)
async def test_limits_of_openais_bind_its_own_routes_only(
    site: Site, engine: FakeEngine, path: str, fields: dict[str, Any]
) -> None:
    engine.max_length = 100_000
    answer = await post(site, path, **fields)
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"tools": [tool("f" * 65)]}, "tools.0.function.name"),
        ({"tools": [tool(f"f{index}") for index in MANY]}, "tools"),
        ({"stop": STOPS}, "stop"),
        ({"frequency_penalty": 3}, "frequency_penalty"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
    ],
    ids=["name", "tools", "stop", "penalty", "temperature", "top_p"],
)
async def test_there_they_bind(site: Site, fields: dict[str, Any], named: str) -> None:
    answer = await post(site, "/v1/chat/completions", **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, named)
