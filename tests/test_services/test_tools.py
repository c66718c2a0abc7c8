"""Which tools may be called, what is wrong with a request for them, and what models are told."""

from typing import Any, ClassVar

import pytest

from schemas.chat_schema import ChatCompletionRequest
from services.chat.formats import HERMES, JSON_LIST, MISTRAL
from services.chat.formats.base import ChatFormat
from services.chat.request import prompt, tool_check
from services.chat.request.render_tools import render_tools
from services.chat.request.tool_selection import select_tools
from services.engine.base import Message
from services.errors import InvalidRequest


def tool(name: str, **function: object) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, **function}}


def chosen(name: str) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name}}


def allowed(mode: str, *names: str) -> dict[str, Any]:
    return {"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": [chosen(name) for name in names]}}


def request(*names: str, **fields: object) -> ChatCompletionRequest:
    chat_request = {"messages": [{"content": "hi"}], "tools": [tool(name) for name in names], **fields}
    return ChatCompletionRequest.model_validate(chat_request)


class TestSelection:
    @pytest.mark.parametrize(
        ("choice", "shown", "callable", "must", "parallel"),
        [
            (None, "fg", "fg", False, True),
            ("auto", "fg", "fg", False, True),
            ("required", "fg", "fg", True, True),
            (chosen("g"), "fg", "g", True, False),
            (allowed("auto", "g"), "g", "g", False, True),
            (allowed("required", "g", "f"), "fg", "fg", True, True),
        ],
    )
    def test_follows_the_choice(self, choice: object, shown: str, callable: str, must: bool, parallel: bool) -> None:
        offer = select_tools(request("f", "g", tool_choice=choice))
        assert offer
        assert "".join(each.function.name for each in offer.tools) == shown
        assert "".join(each.name for each in offer.callable) == callable
        assert (offer.must, offer.parallel) == (must, parallel)

    def test_is_of_one_call_where_they_may_not_be_parallel(self) -> None:
        offer = select_tools(request("f", parallel_tool_calls=False))
        assert offer
        assert not offer.parallel

    @pytest.mark.parametrize("chat_request", [request(), request("f", tool_choice="none")])
    def test_there_is_none(self, chat_request: ChatCompletionRequest) -> None:
        tool_check.check(chat_request)
        assert select_tools(chat_request) is None


class TestCheck:
    @pytest.mark.parametrize(
        ("chat_request", "param"),
        [
            (request(tool_choice="required"), "tool_choice"),
            (request(tool_choice=chosen("f")), "tool_choice"),
            (request("f", tool_choice=chosen("g")), "tool_choice"),
            (request("f", tool_choice=allowed("auto", "f", "g")), "tool_choice"),
            (request("f", "g", "f"), "tools.2.function.name"),
        ],
    )
    def test_refusal_names_what_is_wrong(self, chat_request: ChatCompletionRequest, param: str) -> None:
        with pytest.raises(InvalidRequest) as refused:
            prompt.check(chat_request)
        assert refused.value.param == param

    @pytest.mark.parametrize(
        "schema",
        [
            {"type": "string"},
            {"type": "objekt"},
            {"properties": []},
            {"properties": {"a": {"type": "text"}}},
            {"properties": {"a": 5}},
            {"properties": {"a": {"type": "array", "items": {"required": "b"}}}},
            {"$defs": {"a": {"anyOf": [{"type": 1}]}}},
            {"anyOf": {}},
        ],
    )
    def test_parameters_that_are_no_schema_are_refused(self, schema: dict[str, object]) -> None:
        with pytest.raises(InvalidRequest) as refused:
            prompt.check(request(tools=[tool("f"), tool("g", parameters=schema)]))
        assert refused.value.param == "tools.1.function.parameters"

    def test_parameters_may_not_be_nested_without_end(self) -> None:
        schema: dict[str, object] = {}
        for _ in range(tool_check.MAX_DEPTH - 1):
            schema = {"not": schema}
        prompt.check(request(tools=[tool("f", parameters=schema)]))
        with pytest.raises(InvalidRequest, match="nested"):
            prompt.check(request(tools=[tool("f", parameters={"not": {"not": schema}})]))

    @pytest.mark.parametrize(
        "schema",
        [
            {},
            {"type": "object"},
            {"type": ["object", "null"]},
            {"properties": {"type": {"type": ["string", "null"]}, "required": True, "items": {"enum": [1]}}},
            {"type": "object", "properties": {"a": {"items": [{"type": "string"}]}}, "additionalProperties": False},
        ],
    )
    def test_parameters_that_are_one_are_not(self, schema: dict[str, object]) -> None:
        prompt.check(request(tools=[tool("f", parameters=schema)]))


CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def prompt_messages(*messages: dict[str, object]) -> list[Message]:
    return prompt.messages(ChatCompletionRequest.model_validate({"messages": [*messages]}), (), None)


class TestMessages:
    def test_calls_and_results_are_as_templates_read_them(self) -> None:
        broken = {**CALL, "id": "call_2", "function": {"name": "f", "arguments": '{"a": '}}
        assert prompt_messages(
            {"role": "assistant", "tool_calls": [CALL, broken], "reasoning_content": "Hm."},
            {"role": "tool", "tool_call_id": "call_1", "content": "2"},
        ) == [
            {
                "role": "assistant",
                "content": "",
                "reasoning_content": "Hm.",
                "tool_calls": [
                    {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}},
                    {"id": "call_2", "type": "function", "function": {"name": "f", "arguments": '{"a": '}},
                ],
            },
            {"role": "tool", "content": "2", "tool_call_id": "call_1"},
        ]

    @pytest.mark.parametrize("arguments", ["", "[]", "null", '{"a":' * 5000])
    def test_arguments_that_are_no_object_stay_text(self, arguments: str) -> None:
        call = {**CALL, "function": {"name": "f", "arguments": arguments}}
        (message,) = prompt_messages({"role": "assistant", "tool_calls": [call]})
        assert message["tool_calls"][0]["function"]["arguments"] == arguments

    def test_result_without_its_call_is_refused(self) -> None:
        with pytest.raises(InvalidRequest) as refused:
            prompt_messages({"content": "hi"}, {"role": "tool", "tool_call_id": "call_1", "content": "2"})
        assert refused.value.param == "messages.1.tool_call_id"


class TestRendering:
    MESSAGES: ClassVar[list[Message]] = prompt_messages(
        {"content": "Twice one?"},
        {"role": "assistant", "content": "Well.", "tool_calls": [CALL, {**CALL, "id": "call_2"}]},
        {"role": "tool", "tool_call_id": "call_1", "content": "2"},
        {"role": "tool", "tool_call_id": "call_2", "content": "two"},
    )

    def test_template_that_shows_tools_has_the_messages_as_they_are(self) -> None:
        rendered = render_tools(
            self.MESSAGES, select_tools(request("f")), ChatFormat(HERMES, shows_tools=True, shows_calls=True)
        )
        assert rendered == self.MESSAGES

    def test_another_one_has_calls_and_results_as_text(self) -> None:
        calls = '[{"name": "f", "arguments": {"a": 1}}, {"name": "f", "arguments": {"a": 1}}]'
        assert render_tools(self.MESSAGES, None, ChatFormat(JSON_LIST)) == [
            {"role": "user", "content": "Twice one?"},
            {"role": "assistant", "content": f"Well.\n{calls}"},
            {"role": "user", "content": "Result of f:\n2\n\nResult of f:\ntwo"},
        ]

    @pytest.mark.parametrize(
        ("messages", "format", "role", "begin"),
        [
            ([{"content": "hi"}], ChatFormat(JSON_LIST), "system", "You can call"),
            (
                [{"role": "system", "content": "Be brief."}, {"content": "hi"}],
                ChatFormat(JSON_LIST),
                "system",
                "Be brief.\n\n",
            ),
            ([{"content": "hi"}], ChatFormat(JSON_LIST, takes_system=False), "user", "hi\n\nYou can call"),
        ],
    )
    def test_and_is_introduced_to_the_tools(
        self, messages: list[dict[str, object]], format: ChatFormat, role: str, begin: str
    ) -> None:
        offer = select_tools(
            request(tools=[tool("get_weather", description="Tells it.", parameters={"type": "object"})])
        )
        first = render_tools(prompt_messages(*messages), offer, format)[0]
        assert first["role"] == role
        assert first["content"].startswith(begin)
        assert (
            '{"name": "get_weather", "description": "Tells it.", "parameters": {"type": "object"}}' in first["content"]
        )
        assert '[{"name": "NAME", "arguments": {"PARAMETER": VALUE}}]' in first["content"]

    def test_ids_are_made_short_where_the_template_wants_them_so(self) -> None:
        rendered = render_tools(self.MESSAGES, None, ChatFormat(MISTRAL, shows_tools=True, shows_calls=True))
        ids = [call["id"] for call in rendered[1]["tool_calls"]]
        assert [len(id) for id in ids] == [9, 9]
        assert [each["tool_call_id"] for each in rendered[2:]] == ids
        assert self.MESSAGES[1]["tool_calls"][0]["id"] == "call_1"
