"""The stream of a response, to the letter of the wire."""

import json
from typing import Any

from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from schemas.response_schema import ResponseRequest
from services.chat.answer.output import OutputItems
from services.chat.answer.reasoning_output import ReasoningOutput
from services.chat.answer.response_events import ResponseEncoder, stream_event
from services.chat.events import Arguments, Finish, OutputEvent, Reasoning, Text, ToolCall
from services.chat.request import responses
from services.engine.base import TokenLogprob
from services.errors import EngineFailed

FINISH = Finish("stop", prompt_tokens=5, completion_tokens=2, cached_tokens=3, reasoning_tokens=1)
OFFICIAL: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
RESPONSE = responses.initial_response(ResponseRequest.model_validate({"input": "Hi"}), "a-model")


def encoder(*, logprobs: bool = False, reasoning: ReasoningOutput | None = None) -> ResponseEncoder:
    return ResponseEncoder(RESPONSE, OutputItems("r", logprobs=logprobs), reasoning)


async def transcript(
    *outputs: OutputEvent | Finish, logprobs: bool = False, reasoning: ReasoningOutput | None = None
) -> list[dict[str, Any]]:
    encoding = encoder(logprobs=logprobs, reasoning=reasoning)
    first = encoding.begin(RESPONSE)
    events = [*first, *(each for event in outputs for each in encoding.add(event)), *encoding.end(1.0)]
    sent = [stream_event(event) for event in events]
    assert [each.number for each in sent] == list(range(len(sent)))
    data = [json.loads(each.data) for each in sent]
    assert [(each["type"], each["sequence_number"]) for each in data] == [(each.type, each.number) for each in sent]
    for each in data:
        OFFICIAL.validate_python(each)
    return data


def short(event: dict[str, Any]) -> dict[str, Any]:
    """What of an event is its own."""
    if "response" in event:
        kept = {name: event["response"][name] for name in ("status", "output", "usage")}
        return {"type": event["type"], **kept}
    return {name: value for name, value in event.items() if name != "sequence_number"}


USAGE = {
    "input_tokens": 5,
    "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
    "output_tokens": 2,
    "output_tokens_details": {"reasoning_tokens": 1},
    "total_tokens": 7,
}


def part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


async def test_text_is_streamed_in_deltas_then_whole() -> None:
    message = {"id": "msg_r", "status": "completed", "type": "message", "role": "assistant", "content": [part("Hello")]}
    at = {"output_index": 0, "item_id": "msg_r", "content_index": 0}
    begun = {"status": "in_progress", "output": [], "usage": None}
    assert [short(event) for event in await transcript(Text("Hel"), Text("lo"), FINISH)] == [
        {"type": "response.created", **begun},
        {"type": "response.in_progress", **begun},
        {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": message | {"status": "in_progress", "content": []},
        },
        {"type": "response.content_part.added", **at, "part": part("")},
        {"type": "response.output_text.delta", **at, "delta": "Hel", "logprobs": []},
        {"type": "response.output_text.delta", **at, "delta": "lo", "logprobs": []},
        {"type": "response.output_text.done", **at, "text": "Hello", "logprobs": []},
        {"type": "response.content_part.done", **at, "part": part("Hello")},
        {"type": "response.output_item.done", "output_index": 0, "item": message},
        {"type": "response.completed", "status": "completed", "output": [message], "usage": USAGE},
    ]


async def test_reasoning_text_and_calls_follow_each_other() -> None:
    outputs = [Reasoning("Hm"), Text("See"), ToolCall("c1", "f", 0), Arguments("{", 0), Arguments("}", 0)]
    events = await transcript(*outputs, ToolCall("c2", "g", 1), FINISH)
    assert [(event["type"].removeprefix("response."), event.get("output_index")) for event in events[2:-1]] == [
        ("output_item.added", 0),
        ("content_part.added", 0),
        ("reasoning_text.delta", 0),
        ("reasoning_text.done", 0),
        ("content_part.done", 0),
        ("output_item.done", 0),
        ("output_item.added", 1),
        ("content_part.added", 1),
        ("output_text.delta", 1),
        ("output_text.done", 1),
        ("content_part.done", 1),
        ("output_item.done", 1),
        ("output_item.added", 2),
        ("function_call_arguments.delta", 2),
        ("function_call_arguments.delta", 2),
        ("function_call_arguments.done", 2),
        ("output_item.done", 2),
        ("output_item.added", 3),
        ("function_call_arguments.done", 3),
        ("output_item.done", 3),
    ]
    assert events[14]["item"] == {
        "id": "fc_r",
        "status": "in_progress",
        "type": "function_call",
        "call_id": "c1",
        "name": "f",
        "arguments": "",
    }
    assert short(events[17]) == {
        "type": "response.function_call_arguments.done",
        "output_index": 2,
        "item_id": "fc_r",
        "name": "f",
        "arguments": "{}",
    }
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert events[-1]["response"]["output"] == done


async def test_an_answer_that_met_its_limit_is_incomplete() -> None:
    *_, item, last = await transcript(Text("Hel"), Finish("length", 5, 1))
    assert (item["type"], item["item"]["status"]) == ("response.output_item.done", "incomplete")
    assert last["type"] == "response.incomplete"
    assert last["response"]["incomplete_details"] == {"reason": "max_output_tokens"}
    assert (last["response"]["status"], last["response"]["completed_at"]) == ("incomplete", None)


async def test_an_answer_without_a_word_is_an_empty_message() -> None:
    events = await transcript(FINISH)
    assert [event["type"] for event in events[2:]] == [
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert events[-1]["response"]["output"][0]["content"] == [part("")]


async def test_output_before_a_failure_stays() -> None:
    encoding = encoder()
    encoding.add(Text("Hel"))
    *_, item, last = [json.loads(stream_event(event).data) for event in encoding.fail(EngineFailed("It broke"))]
    assert item["item"]["status"] == "incomplete"
    assert last["response"]["error"] == {"code": "server_error", "message": "It broke"}
    assert last["response"]["output"][0]["content"][0]["text"] == "Hel"


async def test_logprobs_come_with_their_text() -> None:
    token = TokenLogprob("a", b"a", -0.5, (TokenLogprob("b", b"b", -1.0),))
    events = await transcript(Text("a", logprobs=(token,)), FINISH, logprobs=True)
    expected = [
        {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [{"token": "b", "logprob": -1.0, "bytes": [98]}]}
    ]
    found = {event["type"]: event["logprobs"] for event in events if "logprobs" in event}
    assert found == {"response.output_text.delta": expected, "response.output_text.done": expected}
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == expected
    assert events[3]["part"]["logprobs"] == []


async def test_a_summary_is_streamed_as_it_grows() -> None:
    outputs = Reasoning("\nHm."), Reasoning("\n"), Reasoning("\nWell."), Reasoning(" So."), Text("42"), FINISH
    events = await transcript(*outputs, reasoning=ReasoningOutput("concise", seal=str.upper))
    at = {"output_index": 0, "item_id": "rs_r", "summary_index": 0}
    whole = {"type": "summary_text", "text": "Hm."}
    item = {"id": "rs_r", "status": "completed", "type": "reasoning", "summary": [whole]}
    sealed = item | {"encrypted_content": "\nHM.\n\nWELL. SO."}
    assert [short(event) for event in events[2:8]] == [
        {
            "type": "response.output_item.added",
            "output_index": 0,
            "item": item | {"status": "in_progress", "summary": []},
        },
        {"type": "response.reasoning_summary_part.added", **at, "part": whole | {"text": ""}},
        {"type": "response.reasoning_summary_text.delta", **at, "delta": "Hm."},
        {"type": "response.reasoning_summary_text.done", **at, "text": "Hm."},
        {"type": "response.reasoning_summary_part.done", **at, "part": whole},
        {"type": "response.output_item.done", "output_index": 0, "item": sealed},
    ]
    assert events[-1]["response"]["output"][0] == sealed


async def test_reasoning_that_is_its_own_summary_is_streamed() -> None:
    events = await transcript(
        Reasoning("Hm.\n"), Reasoning("\nWell."), Text("42"), FINISH, reasoning=ReasoningOutput("auto")
    )
    deltas = [each["delta"] for each in events if each["type"] == "response.reasoning_summary_text.delta"]
    assert deltas == ["Hm.\n", "\nWell."]
    assert not [each for each in events if each["type"].startswith("response.reasoning_text")]
