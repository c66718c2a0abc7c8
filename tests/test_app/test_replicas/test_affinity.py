"""Which key a request has, by its first bytes."""

import json
from typing import Any

import pytest

from app.replicas.affinity import key, parse
from services import affinity

SYSTEM = {"role": "system", "content": "Be brief."}
FIRST = {"role": "user", "content": "Hello"}
ROOT = "0a1b2c3d"
LATER = [{"role": "assistant", "content": "Hi"}, {"role": "user", "content": "And?"}]


def request(body: Any = None, *, cut: int | None = None, method: str = "POST", **headers: str) -> bytes:
    data = json.dumps(body).encode() if body is not None else b""
    lines = [f"{method} /v1/chat/completions?x=1 HTTP/1.1", f"Content-Length: {len(data)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data[:cut]


def key_of(*args: Any, **named: Any) -> str | None:
    return key(parse(request(*args, **named)))


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        ({"messages": [FIRST], "conversation": "b"}, {"X_Session_Id": ROOT}),
        ({"messages": [FIRST], "conversation": "b"}, {"X_Session_Affinity": ROOT}),
        ({"input": "x", "previous_response_id": f"resp_{24 * 'f'}{ROOT}", "prompt_cache_key": "b"}, {}),
    ],
)
def test_sessions_and_chains_have_keys_of_their_own(body: Any, headers: dict[str, str]) -> None:
    assert key_of(body, **headers) == ROOT


@pytest.mark.parametrize(
    "body",
    [
        {"messages": [FIRST], "conversation": "a", "previous_response_id": "b"},
        {"messages": [FIRST], "conversation": {"id": "a"}},
        {"messages": [FIRST], "prompt_cache_key": "a"},
    ],
)
def test_keys_have_an_order(body: Any) -> None:
    assert key_of(body) == affinity.key_of([b"", "a"])


def test_turns_of_a_conversation_have_one_key() -> None:
    first, later = key_of({"messages": [SYSTEM, FIRST]}), key_of({"messages": [SYSTEM, FIRST, *LATER], "seed": 1})
    assert first == later
    assert first != key_of({"messages": [SYSTEM, {**FIRST, "content": "Bye"}]})
    assert first != key_of({"messages": [SYSTEM, FIRST]}, authorization="Bearer another")
    assert key_of({"input": "Hello", "instructions": "x"}) != key_of({"input": "Hello"})
    assert key_of({"prompt": "Hello"}) == key_of({"prompt": "Hello", "max_tokens": 3})


def test_a_body_that_is_not_here_as_a_whole_has_a_key() -> None:
    long = {"messages": [SYSTEM, {**FIRST, "content": "x" * 5000}]}
    assert key_of(long, cut=3000) == key_of({**long, "seed": 1}, cut=4000)
    for cut in (3000, None):
        assert key_of({"conversation": "a", **long}, cut=cut) == affinity.key_of([b"", "a"])
        assert key_of({"previous_response_id": f"resp_{ROOT}", **long}, cut=cut) == ROOT


@pytest.mark.parametrize(
    "data", [b"", b"GET / HT", b"\x00\xff\r\n\r\n", request(method="GET"), request([1]), b"{\r\n\r\n"]
)
def test_others_have_none(data: bytes) -> None:
    assert key(parse(data)) is None


def test_a_head_is_read_once_it_is_complete() -> None:
    whole = request({"a": 1})
    assert [parse(whole[:size]).is_complete for size in range(len(whole) + 1)] == [False] * len(whole) + [True]
    assert parse(whole).path == b"/v1/chat/completions"
    chunked = parse(b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    assert not chunked.is_complete
