"""Server-sent events from a body in any portions."""

from collections.abc import AsyncIterator
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.engine.remote import sse

BODY = (
    ': hello\n\ndata: {"a": "é😀"}\n\nevent: x\r\nid: 1\r\ndata: one\r\ndata:two\r\n\r\n'
    "data\rretry: 5\r\rdata: [DONE]\n\n"
)
EVENTS = ['{"a": "é😀"}', "one\ntwo", "", "[DONE]"]


async def portions(body: bytes, cuts: list[int]) -> AsyncIterator[bytes]:
    places = [0, *sorted(cuts), len(body)]
    for start, end in pairwise(places):
        yield body[start:end]


async def parsed(body: bytes, cuts: list[int]) -> list[str]:
    return [data.decode() async for data in sse.events(portions(body, cuts))]


@given(st.lists(st.integers(0, len(BODY.encode())), max_size=12))
async def test_events_are_the_same_however_the_body_is_cut(cuts: list[int]) -> None:
    assert await parsed(BODY.encode(), cuts) == EVENTS


async def test_every_byte_by_itself() -> None:
    assert await parsed(BODY.encode(), list(range(len(BODY.encode())))) == EVENTS


async def test_event_that_is_not_ended_is_none() -> None:
    assert await parsed(b"data: whole\n\ndata: half", []) == ["whole"]
    assert await parsed(b"data: whole\n\ndata: half\n", []) == ["whole"]


@pytest.mark.parametrize("body", [b"data: " + b"x" * 40, b"data: xxxxxxxxxx\n" * 4], ids=["line", "event"])
async def test_endless_one_is_refused(body: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT", 32)
    with pytest.raises(sse.BrokenEvents):
        await parsed(body, [])
