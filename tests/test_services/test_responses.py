"""What a request for a response becomes, and what of it is refused."""

from typing import Any

import pytest
from pydantic import ValidationError

from schemas.chat_schema import ChatMessage
from schemas.response_schema import ResponseRequest
from services.chat.request import responses
from services.errors import InvalidRequest

FUNCTION = {"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True}


def request(**fields: Any) -> ResponseRequest:
    return ResponseRequest.model_validate({"input": "Hi", **fields})


def chat(**fields: Any) -> dict[str, Any]:
    chat_request = responses.as_chat(request(**fields), [ChatMessage(content="Hi")])
    return chat_request.model_dump(exclude_unset=True, exclude_none=True)


def test_instructions_come_first() -> None:
    assert chat(instructions="Be brief")["messages"] == [
        {"role": "system", "content": "Be brief"},
        {"content": "Hi"},
    ]


def test_the_sampling_is_the_chats() -> None:
    chat_request = chat(max_output_tokens=7, temperature=0.5, top_p=0.9, service_tier="flex")
    assert {
        "max_completion_tokens": 7,
        "temperature": 0.5,
        "top_p": 0.9,
        "service_tier": "flex",
    }.items() <= chat_request.items()


def test_logprobs_are_requested_by_include() -> None:
    chat_request = chat(include=["message.output_text.logprobs"], top_logprobs=3)
    assert (chat_request["logprobs"], chat_request["top_logprobs"]) == (True, 3)


def test_tools_are_the_chats() -> None:
    chat_request = chat(tools=[FUNCTION], tool_choice={"type": "function", "name": "f"}, parallel_tool_calls=False)
    function = {"name": "f", "parameters": {"type": "object"}, "strict": True}
    assert chat_request["tools"] == [{"type": "function", "function": function}]
    assert chat_request["tool_choice"] == {"type": "function", "function": {"name": "f"}}
    assert chat_request["parallel_tool_calls"] is False


def test_allowed_tools_are_the_chats() -> None:
    allowed = {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "f"}]}
    chosen = {"mode": "required", "tools": [{"type": "function", "function": {"name": "f"}}]}
    found = chat(tools=[FUNCTION], tool_choice=allowed)["tool_choice"]
    assert found == {"type": "allowed_tools", "allowed_tools": chosen}


def test_a_text_format_is_the_chats_response_format() -> None:
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    chat_request = responses.as_chat(request(text={"format": schema}), [ChatMessage(content="Hi")])
    found = chat_request.model_dump(by_alias=True)["response_format"]
    assert found["json_schema"]["schema"] == {"type": "object"}
    assert found["json_schema"]["name"] == "n"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"input": []}, "input"),
        ({"prompt": {"id": "p"}}, "prompt"),
        ({"conversation": "conv_1", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"tool_choice": {"type": "mcp", "server_label": "s"}}, "tool_choice.type"),
        ({"background": True, "store": False}, "background"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options"),
        ({"input": [{"type": "video_call", "id": "x"}]}, "input.0.type"),
    ],
)
def test_what_is_not_served_is_refused_by_name(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        responses.check(request(**fields))
    assert refused.value.param == param


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt_cache_retention": "in_memory"},
        {"reasoning": {"context": "auto", "mode": "standard"}},
        {"include": ["file_search_call.results"]},
        {"input": [{"type": "item_reference", "id": "msg_1"}]},
        {"max_tool_calls": 3},
    ],
)
def test_neutral_values_are_accepted(fields: dict[str, Any]) -> None:
    responses.check(request(**fields))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"moderation": {"model": "m"}}, ["moderation"]),
        ({"prompt_cache_retention": "24h"}, ["prompt_cache_retention"]),
        ({"prompt_cache_retention": "in_memory"}, []),
        ({"reasoning": {"summary": "poem", "mode": "pro"}}, ["reasoning.mode", "reasoning.summary"]),
        ({"reasoning": {"summary": "auto", "generate_summary": "concise"}}, []),
        ({"include": ["reasoning.encrypted_content"]}, []),
        ({"reasoning": {"context": "auto", "mode": "standard"}}, []),
        ({"text": {"verbosity": "low"}}, ["text.verbosity"]),
        ({"text": {"verbosity": "medium"}}, []),
        ({"top_logprobs": 2}, ["top_logprobs"]),
        ({"top_logprobs": 2, "include": ["message.output_text.logprobs"]}, []),
        ({"stream": True, "stream_options": {"include_obfuscation": True}}, ["stream_options.include_obfuscation"]),
        ({"stream": True, "stream_options": {"include_obfuscation": False}}, []),
        ({"include": ["file_search_call.results"]}, ["include.file_search_call.results"]),
        ({"include": ["everything"]}, ["include.everything"]),
        ({"tools": [{"type": "function", "name": "a", "defer_loading": True}]}, ["tools.0.defer_loading"]),
        ({"service_tier": "slow"}, ["service_tier"]),
        ({"tools": [{"type": "function", "name": "f"}, {"type": "mcp", "server_label": "s"}]}, ["tools.1.mcp"]),
        ({"service_tier": "ultrafast"}, []),
        ({"context_management": [{"type": "compaction"}]}, []),
        ({"context_management": [{"type": "clear"}]}, ["context_management.0.clear"]),
    ],
)
def test_what_changes_no_answer_is_left_aside_and_named(fields: dict[str, Any], named: list[str]) -> None:
    chat_request = request(**fields)
    responses.check(chat_request)
    assert responses.unknown_keys(chat_request) == named
    responses.as_chat(chat_request, [ChatMessage(content="Hi")])


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"input": 5}, ("input",)),
        ({"tools": [{"type": "function", "name": "a b"}]}, ("tools", 0, "name")),
        ({"tool_choice": "sometimes"}, ("tool_choice",)),
        ({"tool_choice": {"type": "function"}}, ("tool_choice", "name")),
        ({"text": {"format": {"type": "xml"}}}, ("text", "format")),
        ({"text": {"format": {"type": "json_schema", "name": "n"}}}, ("text", "format", "schema")),
        ({"truncation": "some"}, ("truncation",)),
        ({"metadata": {"a": 1}}, ("metadata", "a")),
    ],
)
def test_what_is_malformed_names_its_place(fields: dict[str, Any], place: tuple[str | int, ...]) -> None:
    with pytest.raises(ValidationError) as refused:
        request(**fields)
    assert refused.value.errors()[0]["loc"] == place


@pytest.mark.parametrize(
    ("of_the_chat", "of_the_response"),
    [("response_format.json_schema", "text.format.json_schema"), ("messages.1.tool_call_id", "input"), ("n", "n")],
)
def test_a_chats_refusal_names_the_responses_own_part(of_the_chat: str, of_the_response: str) -> None:
    error = responses.translated(InvalidRequest("'%s' is odd", of_the_chat))
    assert (error.message, error.param) == (f"'{of_the_response}' is odd", of_the_response)


def test_references_are_replaced_by_what_they_refer_to() -> None:
    chat_request = request(input=[{"type": "item_reference", "id": "msg_1"}, {"role": "user", "content": "And?"}])
    item = {"type": "message", "id": "msg_1", "role": "user", "content": []}
    assert responses.own_items(chat_request, {"msg_1": item}) == [item, chat_request.input[1]]
    with pytest.raises(InvalidRequest) as refused:
        responses.own_items(chat_request, {})
    assert refused.value.param == "input.0.id"


def test_unknown_keys_are_reported() -> None:
    assert responses.unknown_keys(request(colour="red", prompt=None)) == ["colour"]
