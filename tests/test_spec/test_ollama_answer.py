"""Requests that reach a chat, and events that become Ollama's lines."""

from typing import Any

import pytest

from app.spec import Arguments, Event, Finish, Head, Reasoning, Text, TokenLogprob, ToolCall
from app.spec.ollama import answer, request
from schemas.ollama_schema import ChatRequest, GenerateRequest
from services.chat.answer.logprobs import UNLIKELY

HEAD = Head("chatcmpl-1", 0, "m", "fp", None, arrived=1.0, prompt_tokens=5)
FINISH = Finish("tool_calls", 5, 9)
CALLS: tuple[Event, ...] = (
    ToolCall("a", "weather", 0),
    Arguments('{"city": "Pa', 0),
    Arguments('ris"}', 0),
    ToolCall("b", "time", 1),
)
PNG = "iVBORw0KGgo="


def parts(*outputs: Event) -> list[answer.PartialAnswer]:
    encoder = answer.AnswerEncoder(clock=lambda: 3.0)
    return [part for event in (HEAD, *outputs) for part in encoder.parts(event)]


def lines(*outputs: Event) -> list[dict[str, Any]]:
    return [part.chat_line("m").model_dump(exclude={"created_at", "model"}) for part in parts(*outputs)]


CALL_A = {"id": "a", "function": {"name": "weather", "arguments": {"city": "Paris"}, "index": 0}}
CALL_B = {"id": "b", "function": {"name": "time", "arguments": {}, "index": 1}}


def test_a_call_is_one_line() -> None:
    *outputs, last = lines(Reasoning("hm"), Text("Well"), *CALLS, FINISH)
    assert [line["message"] for line in outputs] == [
        {"role": "assistant", "content": "", "thinking": "hm"},
        {"role": "assistant", "content": "Well"},
        {"role": "assistant", "content": "", "tool_calls": [CALL_A]},
        {"role": "assistant", "content": "", "tool_calls": [CALL_B]},
    ]
    assert (last["done_reason"], last["total_duration"]) == ("stop", 2_000_000_000)


def test_whole_answer_is_their_sum() -> None:
    outputs = (Reasoning("h"), Reasoning("m"), Text("We"), Text("ll"), *CALLS, FINISH)
    whole = sum(parts(*outputs), answer.PartialAnswer())
    message = whole.chat_line("m").model_dump()["message"]
    assert message == {
        "role": "assistant",
        "content": "Well",
        "thinking": "hm",
        "tool_calls": [CALL_A, CALL_B],
    }
    assert whole.generate_line("m").response == "Well"


def test_logprobs() -> None:
    token = TokenLogprob("é", "é".encode(), -0.5, (TokenLogprob("e", b"e", -float("inf")),))
    ((line), _) = lines(Text("é", logprobs=(token,)), Finish("stop", 5, 1))
    top = [{"token": "e", "logprob": UNLIKELY, "bytes": [101]}]
    assert line["logprobs"] == [{"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": top}]


def chat(**fields: Any) -> Any:
    return request.chat(ChatRequest.model_validate({"messages": [{"role": "user", "content": "hi"}], **fields}))


def calls(*names: str) -> dict[str, Any]:
    return {"role": "assistant", "tool_calls": [{"function": {"name": name, "arguments": {"x": 1}}} for name in names]}


def result(**fields: Any) -> dict[str, Any]:
    return {"role": "tool", "content": "7", **fields}


@pytest.mark.parametrize(
    ("messages", "answered"),
    [
        ([calls("f", "g"), result(tool_name="g"), result(tool_name="f")], ["call_1", "call_0"]),
        ([calls("f", "f"), result(tool_name="f"), result(tool_name="f")], ["call_0", "call_1"]),
        ([calls("f", "g"), result(), result()], ["call_0", "call_1"]),
        ([calls("f"), result(), calls("f"), result()], ["call_0", "call_1"]),
    ],
)
def test_results_find_their_calls(messages: list[dict[str, Any]], answered: list[str]) -> None:
    chat_request = chat(messages=messages)
    assert [each.tool_call_id for each in chat_request.messages if each.role == "tool"] == answered
    assert chat_request.messages[0].tool_calls[0].function.arguments == '{"x": 1}'


def test_ids_that_are_given_are_kept() -> None:
    begun = calls("f")
    begun["tool_calls"][0]["id"] = "mine"
    chat_request = chat(messages=[begun, result(tool_call_id="mine")])
    assert chat_request.messages[0].tool_calls[0].id == chat_request.messages[1].tool_call_id == "mine"


def test_format_and_thinking() -> None:
    schema = {"type": "object"}
    assert chat(format="json").response_format.type == "json_object"
    assert chat(format=schema).response_format.json_schema.schema_ == schema
    assert chat(think=False).chat_template_kwargs == {"enable_thinking": False}
    assert chat().chat_template_kwargs == {}


def test_images() -> None:
    chat_request = request.chat(GenerateRequest(prompt="what is it?", images=[PNG]))
    image, text = chat_request.messages[0].content
    assert image["image_url"]["url"] == f"data:image/png;base64,{PNG}"
    assert text["text"] == "what is it?"
