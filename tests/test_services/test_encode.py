"""Events to the letter of the wire."""

import json
import math
from collections.abc import AsyncIterator, Iterable
from contextlib import aclosing
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.chat_answer_schema import ChatCompletionChunk
from services.chat.answer import encode
from services.chat.answer.encode import ChunkOptions
from services.chat.events import Event, Finish, Head, Reply, Text
from services.chat.parsing.channels import events
from services.engine.base import Piece, TokenLogprob
from services.errors import EngineFailed
from tests.fakes import FakeEngine, Pause

HEAD = Head(
    "chatcmpl-1",
    1700000000,
    "a-model",
    "fp_1",
    conversation_id=None,
    arrived=1.0,
    prompt_tokens=5,
)
SAID = [
    HEAD,
    Text("Hel", (1,)),
    Text("lo", (2,)),
    Finish("stop", prompt_tokens=5, completion_tokens=2, cached_tokens=3),
]
USAGE = {
    "prompt_tokens": 5,
    "completion_tokens": 2,
    "total_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 3},
    "completion_tokens_details": {"reasoning_tokens": 0},
}


async def run(source: Iterable[Event]) -> AsyncIterator[Event]:
    for event in source:
        yield event


async def sent(source: Iterable[Event], *, usage: bool = False) -> list[str]:
    return await dumped(source, ChunkOptions(usage=usage))


async def dumped(source: Iterable[Event], options: ChunkOptions) -> list[str]:
    encoder = encode.ChunkEncoder(options, clock=lambda: 2.5)
    chunks = [chunk for event in source for chunk in encoder.chunks(event)] + encoder.end()
    return [chunk.model_dump_json(exclude_unset=True) for chunk in chunks]


def folded(source: Iterable[Event]) -> Reply:
    reply = Reply()
    for event in source:
        reply.add(event)
    return reply


def chunk(delta: dict[str, object], reason: str | None = None, **rest: object) -> dict[str, object]:
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason, "arrival_time": 1.5}
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
    head = replace(HEAD, conversation_id="conv_1")
    chunks = [json.loads(line) for line in await sent([head, *SAID[1:]], usage=True)]
    assert [each["conversation"] for each in chunks] == [{"id": "conv_1"}] * 5


def test_completion_has_every_field_of_the_contract() -> None:
    assert encode.completion(
        folded([HEAD, Text("Hello"), Finish("length", 5, 2, cached_tokens=3)]), {}, ChunkOptions()
    ).model_dump() == {
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
    source: list[Event] = [HEAD, *map(Text, pieces), Finish("stop", 1, len(pieces))]
    chunks = [ChatCompletionChunk.model_validate_json(line) for line in await sent(source, usage=usage)]
    deltas = [each.choices[0].delta.content or "" for each in chunks if each.choices]
    assert "".join(deltas) == encode.completion(folded(source), {}, ChunkOptions()).choices[0].message.content
    assert len({(each.id, each.created) for each in chunks}) == 1


class TestEvents:
    async def test_tokens_are_counted_and_those_of_silent_pieces_come_with_the_next(self) -> None:
        engine = FakeEngine(Piece("", (1,)), Piece("é", (2, 3)), Piece("!", (4,), "length"), finish=None)
        assert await self.of(engine) == [HEAD, Text("é", (1, 2, 3)), Text("!", (4,)), Finish("length", 5, 4)]

    async def test_pieces_that_stop_without_a_finish_are_a_failure(self) -> None:
        with pytest.raises(EngineFailed):
            await self.of(FakeEngine("Hello", finish=None))

    async def of(self, engine: FakeEngine) -> list[Event]:
        engine.start()
        return [event async for event in events(HEAD, [engine.open()])]

    async def test_tokens_that_end_it_without_text_come_with_the_finish(self) -> None:
        engine = FakeEngine("a", Piece("", (7,), "stop"), finish=None)
        assert await self.of(engine) == [HEAD, Text("a", (0,)), Finish("stop", 5, 2, token_ids=(7,))]

    async def test_stop_string_that_ended_it_is_named(self) -> None:
        engine = FakeEngine("a", Piece("", (7,), "stop", stop="END"), finish=None)
        *_, finish = await self.of(engine)
        assert isinstance(finish, Finish)
        assert finish.stop == "END"

    async def test_choices_are_interleaved_as_generated(self) -> None:
        pause = Pause()
        slow, fast = FakeEngine("a", pause, "b"), FakeEngine("c", "d")
        slow.start()
        fast.start()
        seen = []
        async for event in events(HEAD, [slow.open(), fast.open()], echoes="ee"):
            seen.append(event)
            if isinstance(event, Finish):
                pause.go.set()
        assert [each.text for each in seen if isinstance(each, Text) and each.index == 0] == ["e", "a", "b"]
        assert [each.text for each in seen if isinstance(each, Text) and each.index == 1] == ["e", "c", "d"]
        assert [each.index for each in seen if isinstance(each, Finish)] == [1, 0]

    @pytest.mark.parametrize("error", [EngineFailed("broken"), RuntimeError("broken")], ids=type)
    async def test_a_choice_that_fails_ends_all(self, error: Exception) -> None:
        healthy, broken = FakeEngine("a", Pause()), FakeEngine("b", error)
        healthy.start()
        broken.start()
        with pytest.raises(type(error)):
            _ = [event async for event in events(HEAD, [healthy.open(), broken.open()])]
        assert not healthy.running | broken.running

    async def test_a_reader_that_leaves_ends_all(self) -> None:
        engine = FakeEngine("a", Pause())
        engine.start()
        async with aclosing(events(HEAD, [engine.open(), engine.open()])) as run:
            assert [await anext(run) for _ in range(3)] == [HEAD, Text("a", (0,)), Text("a", (0,), index=1)]
        assert not engine.running


class TestExtras:
    SAID = (
        replace(HEAD, n=2),
        Text("a", (1, 2), (TokenLogprob("a", b"a", -0.5, (TokenLogprob("b", b"\xff", -math.inf),)),), index=1),
        Text("b", (3,), index=0),
        Finish("length", 5, 1, cached_tokens=3, index=0),
        Finish("stop", 5, 3, token_ids=(4,), index=1),
    )
    LOGPROBS: ClassVar[dict[str, object]] = {
        "content": [
            {
                "token": "a",
                "logprob": -0.5,
                "bytes": [97],
                "top_logprobs": [{"token": "b", "logprob": -9999.0, "bytes": [255]}],
            }
        ],
        "refusal": None,
    }

    async def chunks(self, options: ChunkOptions) -> list[dict[str, Any]]:
        return [json.loads(line) for line in await dumped(self.SAID, options)]

    async def test_choices_appear_in_their_order_and_finish_each(self) -> None:
        choices = [chunk["choices"][0] for chunk in await self.chunks(ChunkOptions())]
        assert [(each["index"], each["delta"], each["finish_reason"]) for each in choices] == [
            (0, FIRST, None),
            (1, FIRST, None),
            (1, {"content": "a"}, None),
            (0, {"content": "b"}, None),
            (0, {}, "length"),
            (1, {}, "stop"),
        ]
        assert [each["logprobs"] for each in choices] == [None, None, self.LOGPROBS, None, None, None]

    async def test_token_ids(self) -> None:
        deltas = [chunk["choices"][0]["delta"] for chunk in await self.chunks(ChunkOptions(token_ids=True))]
        assert [each.get("token_ids") for each in deltas] == [None, None, [1, 2], [3], None, [4]]
        choices = encode.completion(folded(self.SAID), {}, ChunkOptions(token_ids=True)).choices
        assert [each.message.model_dump()["token_ids"] for each in choices] == [[3], [1, 2, 4]]

    async def test_usage_is_the_sum_of_the_choices_and_the_prompt_once(self) -> None:
        used = {**USAGE, "completion_tokens": 4, "total_tokens": 9}
        assert (await self.chunks(ChunkOptions(usage=True)))[-1]["usage"] == used
        assert encode.completion(folded(self.SAID), {}, ChunkOptions()).usage.model_dump() == used

    async def test_usage_so_far(self) -> None:
        chunks = await self.chunks(ChunkOptions(usage_so_far=True))
        assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [0, 0, 2, 3, 3, 4]

    def test_logprobs_of_a_plain_answer(self) -> None:
        choices = encode.completion(folded(self.SAID), {}, ChunkOptions(logprobs=True)).model_dump()["choices"]
        assert [each["logprobs"] for each in choices] == [{"content": [], "refusal": None}, self.LOGPROBS]
