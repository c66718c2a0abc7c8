"""Tool calls with the official client: even the smallest model calls what it must, with arguments that are valid."""

import json
from typing import Any

import openai
import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from tests.test_live.service import CHAT

pytestmark = pytest.mark.live

WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 7},
            },
            "required": ["city", "unit", "days"],
            "additionalProperties": False,
        },
    },
}
TIME: dict[str, Any] = {"type": "function", "function": {"name": "get_time", "description": "The time now"}}
NAMED: dict[str, Any] = {"type": "function", "function": {"name": "get_weather"}}
ASKED: dict[str, Any] = {
    "model": CHAT,
    "messages": [{"role": "user", "content": "What is the weather like in Paris?"}],
    "tools": [TIME, WEATHER],
    "temperature": 0,
    "max_tokens": 80,
}


def is_valid(arguments: str) -> bool:
    said = json.loads(arguments)
    assert set(said) == {"city", "unit", "days"}
    return isinstance(said["city"], str) and said["unit"] in ("celsius", "fahrenheit") and 1 <= said["days"] <= 7


def added_up(chunks: list[ChatCompletionChunk]) -> dict[int, dict[str, str]]:
    """ToolFormat as a client gets them that adds up what comes."""
    calls: dict[int, dict[str, str]] = {}
    for delta in [chunk.choices[0].delta for chunk in chunks]:
        for part in delta.tool_calls or []:
            call = calls.setdefault(part.index, {"id": "", "name": "", "arguments": ""})
            assert part.function
            call["id"] += part.id or ""
            call["name"] += part.function.name or ""
            call["arguments"] += part.function.arguments or ""
    return calls


def plain(client: OpenAI, **more: Any) -> ChatCompletion:
    answer: ChatCompletion = client.chat.completions.create(**ASKED | more)
    return answer


def streamed(client: OpenAI, **more: Any) -> list[ChatCompletionChunk]:
    with client.chat.completions.create(**ASKED | more, stream=True) as stream:
        return list(stream)


@pytest.mark.parametrize("strict", [False, True])
def test_the_named_tool_is_called_once(client: OpenAI, strict: bool) -> None:
    tools = [TIME, {**WEATHER, "function": {**WEATHER["function"], "strict": strict}}]
    (choice,) = plain(client, tools=tools, tool_choice=NAMED).choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert choice.message.tool_calls
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert call.id
    assert call.function.name == "get_weather"
    assert is_valid(call.function.arguments)


@pytest.mark.parametrize("temperature", [0, 1])
def test_some_tool_is_called_where_one_is_required(client: OpenAI, temperature: float) -> None:
    answer = plain(client, tool_choice="required", parallel_tool_calls=False, temperature=temperature, seed=1, n=3)
    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.tool_calls
        (call,) = choice.message.tool_calls
        assert call.type == "function"
        if call.function.name == "get_time":
            assert call.function.arguments == "{}"
        else:
            assert is_valid(call.function.arguments)


def test_a_stream_adds_up_to_the_plain_answer(client: OpenAI) -> None:
    (message,) = [choice.message for choice in plain(client, tool_choice=NAMED).choices]
    chunks = streamed(client, tool_choice=NAMED)
    assert message.tool_calls
    (call,) = message.tool_calls
    assert call.type == "function"
    (said,) = added_up(chunks).values()
    assert (said["name"], said["arguments"]) == (call.function.name, call.function.arguments)
    assert len([chunk for chunk in chunks if chunk.choices[0].delta.tool_calls]) > 5
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "tool_calls"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == ""


def test_the_stream_helper_reads_calls(client: OpenAI) -> None:
    with client.chat.completions.stream(**ASKED, tool_choice=NAMED) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion()
    (event,) = done
    assert event.name == "get_weather"
    assert is_valid(event.arguments)
    assert final.choices[0].message.tool_calls
    assert final.choices[0].message.tool_calls[0].function.arguments == event.arguments


def test_several_calls_have_each_their_own_id(client: OpenAI) -> None:
    calls = added_up(streamed(client, tools=[TIME], tool_choice="required", temperature=2, seed=1, max_tokens=50))
    assert {call["name"] for call in calls.values()} == {"get_time"}
    assert list(calls) == list(range(len(calls)))
    assert len({call["id"] for call in calls.values()}) == len(calls)


def test_a_call_that_is_cut_says_so(client: OpenAI) -> None:
    (choice,) = plain(client, tool_choice=NAMED, max_tokens=15).choices
    assert choice.finish_reason == "length"


def test_none_hides_the_tools(client: OpenAI) -> None:
    hidden = plain(client, tool_choice="none", max_tokens=10)
    without = plain(client, tools=openai.omit, max_tokens=10)
    assert hidden.choices[0].message.content == without.choices[0].message.content
    assert hidden.usage
    assert without.usage
    assert hidden.usage.prompt_tokens == without.usage.prompt_tokens
    assert hidden.choices[0].message.tool_calls is None


@pytest.mark.parametrize("parallel", [True, False])
def test_auto_answers_with_text_or_calls(client: OpenAI, parallel: bool) -> None:
    (choice,) = plain(client, tool_choice="auto", parallel_tool_calls=parallel, max_tokens=30).choices
    calls = choice.message.tool_calls or []
    assert calls or choice.message.content
    assert parallel or len(calls) <= 1


def test_results_are_read(client: OpenAI) -> None:
    first = plain(client, tool_choice=NAMED).choices[0].message
    assert first.tool_calls
    result = {"role": "tool", "tool_call_id": first.tool_calls[0].id, "content": "Sunny, 31 degrees."}
    asked = [*ASKED["messages"], first.model_dump(exclude_none=True), result]
    second = plain(client, messages=asked, max_tokens=5)
    unread = plain(client, messages=asked[:2], max_tokens=5)
    assert second.usage
    assert unread.usage
    assert second.usage.prompt_tokens > unread.usage.prompt_tokens
    assert second.choices[0].message.content


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "nobody"}}}, "tool_choice"),
        ({"tools": [TIME, TIME]}, "tools.1.function.name"),
        (
            {"tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "objekt"}}}]},
            "tools.0.function.parameters",
        ),
        ({"messages": [{"role": "tool", "tool_call_id": "call_1", "content": "x"}]}, "messages.0.tool_call_id"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"tools": [{"type": "web_search"}], "tool_choice": {"type": "web_search"}}, "tool_choice"),
    ],
)
def test_what_is_wrong_is_named(client: OpenAI, more: dict[str, Any], param: str) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        plain(client, **more)
    assert refused.value.param == param


def test_keyword_that_a_strict_tool_cannot_have_is_named(client: OpenAI) -> None:
    schema = {"type": "object", "properties": {"a": {"not": {"type": "string"}}}}
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema, "strict": True}}]
    with pytest.raises(openai.BadRequestError, match="not") as refused:
        plain(client, tools=tools)
    assert refused.value.param == "tools.0.function.parameters"
