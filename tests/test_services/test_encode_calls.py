"""What is thought and which tools are called, to the letter of the wire."""

import json

from hypothesis import given
from hypothesis import strategies as st

from schemas.chat_answer_schema import ChatCompletionChunk
from services.chat.answer import encode
from services.chat.answer.encode import ChunkOptions
from services.chat.events import Arguments, Event, Finish, Reasoning, Text, ToolCall
from services.chat.formats import HERMES, TAGS
from services.chat.formats.base import OutputFormat
from services.chat.parsing.channels import events
from services.engine.base import FinishReason, Piece, TokenLogprob
from tests.fakes import FakeEngine
from tests.test_services.test_encode import FIRST, HEAD, chunk, folded, frame, sent

SAID: list[Event] = [
    HEAD,
    Reasoning("Hm.", (1, 2)),
    ToolCall("call_1", "f", 0, (3,)),
    Arguments('{"a":', 0, (4,)),
    Arguments(" 1}", 0, (5,)),
    ToolCall("call_2", "g", 1, (6,)),
    Arguments("{}", 1, (7,)),
    Finish("tool_calls", 5, 7, reasoning_tokens=2),
]
FORMAT = OutputFormat(TAGS, tools=HERMES, names=frozenset({"f"}))
CALL = '<think>Hm.</think><tool_call>{"name": "f", "arguments": {}}</tool_call>'


def called(index: int, function: dict[str, object], **first: object) -> dict[str, object]:
    return chunk({"tool_calls": [{"index": index, **first, "function": function}]}, usage=None)


async def test_chunks_to_the_letter() -> None:
    chunks = [json.loads(line) for line in await sent(SAID, usage=True)]
    assert chunks[:-1] == [
        chunk(FIRST, usage=None),
        chunk({"reasoning_content": "Hm."}, usage=None),
        called(0, {"name": "f", "arguments": ""}, id="call_1", type="function"),
        called(0, {"arguments": '{"a":'}),
        called(0, {"arguments": " 1}"}),
        called(1, {"name": "g", "arguments": ""}, id="call_2", type="function"),
        called(1, {"arguments": "{}"}),
        chunk({}, "tool_calls", usage=None),
    ]
    usage = chunks[-1].pop("usage")
    assert chunks[-1] == frame([])
    assert (usage["completion_tokens"], usage["completion_tokens_details"]) == (7, {"reasoning_tokens": 2})


def test_message_of_a_plain_answer() -> None:
    answer = encode.completion(folded(SAID), {}, ChunkOptions())
    assert answer.model_dump()["choices"][0] == {
        "index": 0,
        "message": {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "reasoning_content": "Hm.",
            "tool_calls": [
                {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
                {"id": "call_2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
            ],
        },
        "logprobs": None,
        "finish_reason": "tool_calls",
    }
    assert answer.usage.completion_tokens_details.reasoning_tokens == 2


def test_text_beside_a_call_is_content() -> None:
    answer = encode.completion(folded([HEAD, Text("Wait."), *SAID[1:]]), {}, ChunkOptions())
    assert answer.choices[0].message.content == "Wait."


@given(source=st.lists(st.sampled_from([Text("a"), Reasoning("b"), ToolCall("i", "f", 0), Arguments("c", 0)])))
async def test_sum_of_the_deltas_is_the_plain_answer(source: list[Event]) -> None:
    calls = [each for each in source if isinstance(each, ToolCall)][:1]
    kept = [HEAD, *calls, *(each for each in source if calls or not isinstance(each, Arguments))]
    kept = [each for place, each in enumerate(kept) if not isinstance(each, ToolCall) or place == 1]
    run = [*kept, Finish("stop", 1, 1)]
    deltas = [ChatCompletionChunk.model_validate_json(line).choices[0].delta for line in await sent(run)]
    message = encode.completion(folded(run), {}, ChunkOptions()).choices[0].message
    assert "".join(delta.content or "" for delta in deltas) == (message.content or "")
    assert "".join(delta.reasoning_content or "" for delta in deltas) == (message.reasoning_content or "")
    functions = [call.function for delta in deltas for call in delta.tool_calls]
    assert "".join(each.arguments for each in functions) == "".join(
        call.function.arguments for call in message.tool_calls or []
    )
    assert [each.name for each in functions if each.name] == [call.function.name for call in message.tool_calls or []]


class TestChannels:
    async def of(self, *pieces: Piece, finish: FinishReason | None = None) -> list[Event]:
        engine = FakeEngine(*pieces, finish=finish)
        engine.start()
        return [event async for event in events(HEAD, [engine.open()], format=FORMAT)][1:]

    async def test_tokens_go_with_their_text_and_those_of_markers_with_the_next(self) -> None:
        texts = [
            "<think>",
            "Hm",
            ".",
            "</think>",
            "\n",
            "<tool",
            "_call>",
            '{"name": "f", "arguments": {',
            "}",
            "}",
            "</tool_call>",
        ]
        pieces = [Piece(text, (number,)) for number, text in enumerate(texts)]
        _, _, call, *_, finish = parsed = await self.of(*pieces, Piece("", (99,), "stop"))
        assert parsed[:2] == [Reasoning("Hm", (0, 1)), Reasoning(".", (2,))]
        assert isinstance(call, ToolCall)
        assert (call.name, call.token_ids) == ("f", (3, 4, 5, 6, 7))
        assert parsed[3:5] == [Arguments("{", 0), Arguments("}", 0, (8,))]
        assert finish == Finish("tool_calls", 5, 12, token_ids=(9, 10, 99), reasoning_tokens=3)

    async def test_every_logprob_is_sent(self) -> None:
        token_logprobs = [TokenLogprob(letter, letter.encode(), -1.0) for letter in CALL]
        pieces = [Piece(each.text, (0,), logprobs=(each,)) for each in token_logprobs]
        parsed = await self.of(*pieces, finish="stop")
        assert [each for event in parsed if not isinstance(event, Finish) for each in event.logprobs] == token_logprobs  # type: ignore[union-attr]

    async def test_answer_that_was_cut_ends_at_its_length_though_it_called(self) -> None:
        *_, finish = await self.of(Piece(CALL), finish="length")
        assert isinstance(finish, Finish)
        assert finish.reason == "length"

    async def test_answer_without_a_call_ends_as_ever(self) -> None:
        *_, finish = await self.of(Piece("<tool_call>"), finish="stop")
        assert isinstance(finish, Finish)
        assert finish.reason == "stop"

    async def test_stop_string_of_the_content_ends_the_answer(self) -> None:
        engine = FakeEngine(Piece("a", (1,), cached_tokens=3), Piece("b", (2,)), Piece("c", (3,)), "d")
        engine.start()
        format = OutputFormat(TAGS, stop=("b",), min_tokens=0)
        parsed = [event async for event in events(HEAD, [engine.open()], format=format)][1:]
        assert parsed == [Text("a", (1,)), Finish("stop", 5, 2, cached_tokens=3, token_ids=(2,), stop="b")]
        assert not engine.running

    async def test_no_stop_string_is_looked_for_in_the_first_tokens(self) -> None:
        engine = FakeEngine(Piece("ab", (1, 2)), Piece("b", (3,)))
        engine.start()
        format = OutputFormat(TAGS, stop=("b",), min_tokens=2)
        parsed = [event async for event in events(HEAD, [engine.open()], format=format)][1:]
        assert parsed[0] == Text("ab", (1, 2))
        assert isinstance(parsed[1], Finish)
        assert (parsed[1].reason, parsed[1].completion_tokens) == ("stop", 3)
