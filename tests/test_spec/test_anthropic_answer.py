"""Events -> Anthropic's stream and message."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.spec import Arguments, Event, Finish, Head, Reasoning, Text, ToolCall
from app.spec.anthropic import answer
from schemas.anthropic_answer_schema import MessageEvent

HEAD = Head("chatcmpl-1", 0, "m", "fp", None, prompt_tokens=5)
FINISH = Finish("tool_calls", 5, 9, reasoning_tokens=2)
THOUGHT = (Reasoning("hm"), Reasoning("m"))
SHOWN, OMITTED = (
    answer.ThinkingOutputMode(lambda thought: f"sealed {thought}", shown=shown) for shown in (True, False)
)
CALLS: tuple[Event, ...] = (
    ToolCall("a", "weather", 0),
    Arguments('{"city": "Pa', 0),
    Arguments('ris"}', 0),
    ToolCall("b", "time", 1),
)


def encoded(outputs: tuple[Event, ...], thinking: answer.ThinkingOutputMode | None) -> list[MessageEvent]:
    encoder = answer.EventEncoder(100, thinking)
    return [each for event in (HEAD, *outputs) for each in encoder.events(event)]


def streamed(*outputs: Event, thinking: answer.ThinkingOutputMode | None = SHOWN) -> list[dict[str, Any]]:
    return [event.model_dump() for event in encoded(outputs, thinking)]


def whole(*outputs: Event, thinking: answer.ThinkingOutputMode | None = SHOWN) -> Any:
    builder = answer.MessageBuilder()
    for event in encoded(outputs, thinking):
        builder.add(event)
    return builder.message()


def blocks(message: Any) -> list[dict[str, Any]]:
    return [block.model_dump(exclude={"citations"}) for block in message.content]


def test_each_kind_is_a_block_of_its_own() -> None:
    found = streamed(*THOUGHT, Text("Let me "), Text("see"), *CALLS, FINISH)
    kinds = [(each["type"].removeprefix("content_block_"), each.get("index")) for each in found]
    assert kinds == [
        ("message_start", None),
        *[("start", 0), ("delta", 0), ("delta", 0), ("delta", 0), ("stop", 0)],  # with its signature
        *[("start", 1), ("delta", 1), ("delta", 1), ("stop", 1)],
        *[("start", 2), ("delta", 2), ("delta", 2), ("stop", 2)],
        *[("start", 3), ("stop", 3)],
        ("message_delta", None),
        ("message_stop", None),
    ]
    assert found[-2]["delta"] == {"stop_reason": "tool_use", "stop_sequence": None}
    assert found[-2]["usage"]["output_tokens_details"] == {"thinking_tokens": 2}


def test_whole_message() -> None:
    message = whole(*THOUGHT, Text("Let me see"), *CALLS, FINISH)
    assert blocks(message) == [
        {"type": "thinking", "thinking": "hmm", "signature": "sealed hmm"},
        {"type": "text", "text": "Let me see"},
        {"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Paris"}},
        {"type": "tool_use", "id": "b", "name": "time", "input": {}},
    ]
    assert message.stop_reason == "tool_use"


def test_thinking_is_omitted_unless_requested() -> None:
    message = whole(*THOUGHT, Text("Yes"), FINISH, thinking=None)
    assert blocks(message) == [{"type": "text", "text": "Yes"}]
    assert message.usage.output_tokens_details.thinking_tokens == 2


def test_omitted_thoughts_are_a_signature_alone() -> None:
    found = streamed(*THOUGHT, Text("Yes"), FINISH, thinking=OMITTED)
    assert [(each["type"], each.get("content_block") or each.get("delta")) for each in found[1:4]] == [
        ("content_block_start", {"type": "thinking", "thinking": "", "signature": ""}),
        ("content_block_delta", {"type": "signature_delta", "signature": "sealed hmm"}),
        ("content_block_stop", None),
    ]
    message = whole(*THOUGHT, Text("Yes"), FINISH, thinking=OMITTED)
    assert blocks(message)[0] == {"type": "thinking", "thinking": "", "signature": "sealed hmm"}


@pytest.mark.parametrize("thinking", [SHOWN, OMITTED], ids=["shown", "omitted"])
def test_each_thought_is_sealed_by_itself(thinking: answer.ThinkingOutputMode) -> None:
    message = whole(*THOUGHT, *CALLS[:2], Reasoning("so"), Finish("length", 5, 100), thinking=thinking)
    assert [block.signature for block in message.content if block.type == "thinking"] == ["sealed hmm", "sealed so"]


def test_call_that_was_cut_has_what_came_of_its_input() -> None:
    message = whole(*CALLS[:2], Arguments('ris", "unit', 0), Finish("length", 5, 100))
    assert blocks(message) == [{"type": "tool_use", "id": "a", "name": "weather", "input": {"city": "Paris"}}]
    assert message.stop_reason == "max_tokens"


def test_forced_call_that_stops_is_a_tool_use() -> None:
    assert (whole(*CALLS, Finish("stop", 5, 9))).stop_reason == "tool_use"


def test_empty_text_makes_no_block() -> None:
    assert (whole(Text(""), Finish("stop", 5, 1))).content == []


@given(st.lists(st.sampled_from([Text("a"), Text(""), Text("é"), Reasoning("b"), Reasoning("")]), max_size=12))
def test_whole_message_is_the_sum_of_the_stream(outputs: list[Event]) -> None:
    found = streamed(*outputs, FINISH)
    message = whole(*outputs, FINISH)
    deltas = [each for each in found if each["type"] == "content_block_delta"]
    for index, block in enumerate(message.content):
        parts = [each["delta"] for each in deltas if each["index"] == index]
        assert "".join(part.get("text") or part.get("thinking") or "" for part in parts) == (
            getattr(block, "text", "") or getattr(block, "thinking", "")
        )
    assert [each["index"] for each in found if each["type"] == "content_block_stop"] == list(
        range(len(message.content))
    )
