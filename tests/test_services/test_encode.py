"""Events to the letter of the wire."""

import json
from collections.abc import AsyncIterator, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.chat_schema import ChatCompletionChunk
from services.chat import encode
from services.chat.events import Event, Finish, Head, Reply, Text, events
from services.engine.base import Piece
from services.errors import EngineFailed
from tests.fakes import FakeEngine

HEAD = Head("chatcmpl-1", 1700000000, "a-model", "fp_1", reply_id="0" * 32, conversation_id=None)
SAID = [HEAD, Text("Hel"), Text("lo"), Finish("stop", prompt_tokens=5, completion_tokens=2, cached_tokens=3)]
USAGE = {
    "prompt_tokens": 5,
    "completion_tokens": 2,
    "total_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 3},
}


async def run(said: Iterable[Event]) -> AsyncIterator[Event]:
    for event in said:
        yield event


async def sent(said: Iterable[Event], *, usage: bool = False) -> list[str]:
    return [chunk.model_dump_json(exclude_unset=True) async for chunk in encode.chunks(run(said), usage)]


def chunk(delta: dict[str, object], reason: str | None = None, **rest: object) -> dict[str, object]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
    return frame([choice], **rest)


def frame(choices: list[dict[str, object]], **rest: object) -> dict[str, object]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1700000000,
        "model": "a-model",
        "choices": choices,
        "system_fingerprint": "fp_1",
        **rest,
    }


FIRST: dict[str, object] = {"role": "assistant", "content": "", "refusal": None}


async def test_chunks_to_the_letter() -> None:
    assert [json.loads(line) for line in await sent(SAID)] == [
        chunk(FIRST),
        chunk({"content": "Hel"}),
        chunk({"content": "lo"}),
        chunk({}, "stop"),
    ]


async def test_chunks_with_usage_to_the_letter() -> None:
    assert [json.loads(line) for line in await sent(SAID, usage=True)] == [
        chunk(FIRST, usage=None),
        chunk({"content": "Hel"}, usage=None),
        chunk({"content": "lo"}, usage=None),
        chunk({}, "stop", usage=None),
        frame([], usage=USAGE),
    ]


async def test_every_chunk_names_the_conversation_there_is() -> None:
    head = Head("chatcmpl-1", 1700000000, "a-model", "fp_1", reply_id="0" * 32, conversation_id="conv_1")
    chunks = [json.loads(line) for line in await sent([head, *SAID[1:]], usage=True)]
    assert [each["conversation"] for each in chunks] == [{"id": "conv_1"}] * 5


def test_completion_has_every_field_of_the_contract() -> None:
    assert encode.completion(HEAD, "Hello", Finish("length", 5, 2, cached_tokens=3), {}).model_dump() == {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1700000000,
        "model": "a-model",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello", "refusal": None},
                "logprobs": None,
                "finish_reason": "length",
            }
        ],
        "usage": USAGE,
        "system_fingerprint": "fp_1",
        "metadata": None,
        "conversation": None,
    }


@given(pieces=st.lists(st.text(st.characters(exclude_categories=["Cs"]))), usage=st.booleans())
async def test_sum_of_the_deltas_is_the_plain_answer(pieces: list[str], usage: bool) -> None:
    finish = Finish("stop", 1, len(pieces))
    said: list[Event] = [HEAD, *map(Text, pieces), finish]
    reply = Reply()
    for event in said:
        reply.add(event)
    chunks = [ChatCompletionChunk.model_validate_json(line) for line in await sent(said, usage=usage)]
    deltas = [each.choices[0].delta.content or "" for each in chunks if each.choices]
    assert "".join(deltas) == encode.completion(HEAD, reply.text, finish, {}).choices[0].message.content
    assert len({(each.id, each.created) for each in chunks}) == 1


class TestEvents:
    async def test_tokens_are_counted_and_silent_pieces_are_not_passed_on(self) -> None:
        engine = FakeEngine(Piece("", (1,)), Piece("é", (2, 3)), Piece("!", (4,), "length"), finish=None)
        assert await self.of(engine) == [HEAD, Text("é", (2, 3)), Text("!", (4,)), Finish("length", 9, 4)]

    async def test_pieces_that_stop_without_a_finish_are_a_failure(self) -> None:
        with pytest.raises(EngineFailed):
            await self.of(FakeEngine("Hello", finish=None))

    async def of(self, engine: FakeEngine) -> list[Event]:
        engine.start()
        return [event async for event in events(HEAD, engine.open(), prompt_tokens=9)]
