"""Strict JSON bodies and their limits."""

from typing import Any

import pytest

from tests.apps import Site

CHAT = "/v1/chat/completions"


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"",
        b"not json",
        b'{"messages": [{"content": "\xff"}]}',
        b'{"messages": [{"content": "hi"}], "temperature": NaN}',
        rb'{"messages": [{"content": "\ud800"}]}',
        rb'{"messages": [{"content": [{"type": "text", "text": "\udc00"}]}]}',
        rb'{"messages": [{"content": "hi"}], "metadata": {"a": "\ud800"}}',
        b"[" * 100_000,
    ],
    ids=["open", "empty", "words", "not utf-8", "nan", "half a pair", "half a pair in a part", "in metadata", "deep"],
)
async def test_invalid_json_is_rejected(site: Site, body: bytes) -> None:
    answer = await site.client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, "invalid_json")


def nested(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels - 1):
        value = {"a": value}
    return value


HI = [{"role": "user", "content": "hi"}]
PARTS = [{"type": "input_text", "text": "hi", "more": nested(400)}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": nested(400)}}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": HI, "response_format": SCHEMA}),
        (CHAT, {"messages": HI, "chat_template_kwargs": nested(400)}),
        ("/v1/conversations", {"items": [{"role": "user", "content": PARTS}]}),
        ("/v1/responses", {"input": [{"role": "user", "content": PARTS}]}),
        ("/v1/messages", {"messages": HI, "max_tokens": 1, "tools": [{"name": "f", "input_schema": nested(400)}]}),
        ("/api/chat", {"messages": HI, "format": nested(400)}),
        ("/chat/new/message/", {"prompt": "hi", "history": nested(400)}),
    ],
)
async def test_deep_nesting_is_rejected_by_name(site: Site, path: str, body: dict[str, Any]) -> None:
    answer = await site.client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    assert "128 levels deep" in answer.text
    if path.startswith("/v1/") and path != "/v1/messages":  # errors of other protocols name no parameter
        assert answer.json()["error"]["param"] == list(body)[-1]


@pytest.mark.parametrize(("levels", "status"), [(128, 200), (129, 400)])
async def test_limit_of_nesting(site: Site, levels: int, status: int) -> None:
    answer = await site.client.post(CHAT, json={"messages": HI, "unheard_of": nested(levels)})
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize("stop", [[{}] * 50_000, [[{}] * 25_000] * 2])
async def test_too_many_values_are_rejected_by_name(site: Site, stop: object) -> None:
    answer = await site.client.post(CHAT, json={"messages": HI, "stop": stop})
    assert answer.status_code == 400
    assert (answer.json()["error"]["param"], "50000 objects" in answer.text) == ("stop", True)


async def test_large_flat_body_is_read(site: Site) -> None:
    answer = await site.client.post(CHAT, json={"messages": HI * 300})
    assert answer.status_code == 200, answer.text


async def test_identity_encoding_is_read(site: Site) -> None:
    answer = await site.client.post(CHAT, json={"messages": HI}, headers={"Content-Encoding": "Identity"})
    assert answer.status_code == 200, answer.text
