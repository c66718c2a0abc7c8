"""What counts as JSON."""

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
async def test_what_is_none_is_refused_as_such(site: Site, body: bytes) -> None:
    answer = await site.client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["type"], error["param"], error["code"]) == ("invalid_request_error", None, "invalid_json")
