"""Tools of a response: namespaces, custom ones and a search, as a chat has them and as a client knows them."""

import json
from typing import Any

import pytest

from schemas.response_schema import ResponseRequest
from services.chat import items
from services.chat.answer.output import OutputItems
from services.chat.events import Callee
from services.chat.formats import JSON_LIST
from services.chat.formats.base import OutputFormat
from services.chat.names import flat
from services.chat.parsing.output_parser import OutputParser
from services.chat.request import prompt, responses
from services.chat.request.tool_selection import ToolSelection, select_tools
from services.errors import InvalidRequest
from services.parameter_names import translate_errors


def function(name: str, **more: object) -> dict[str, Any]:
    return {"type": "function", "name": name, "parameters": {"properties": {}}, **more}


def namespace(name: str, *tools: dict[str, Any], **more: object) -> dict[str, Any]:
    return {"type": "namespace", "name": name, "description": f"About {name}.", "tools": list(tools), **more}


PATCH = {"type": "custom", "name": "patch", "format": {"type": "grammar", "syntax": "regex", "definition": "a+"}}
SEARCH = {"type": "tool_search", "execution": "client", "description": "Finds tools."}
KEYS = namespace("keys", function("lookup", description="Looks up."), {**PATCH, "name": "edit"})
CALLED = {"type": "tool_search_call", "execution": "client", "call_id": "c", "arguments": {"query": "q"}}


def found(*tools: dict[str, Any]) -> list[dict[str, Any]]:
    return [CALLED, {"type": "tool_search_output", "execution": "client", "call_id": "c", "tools": list(tools)}]


def request(*tools: dict[str, Any], input: Any = "hi", **fields: object) -> ResponseRequest:
    return ResponseRequest.model_validate({"input": input, "tools": list(tools), **fields})


def offer(response_request: ResponseRequest) -> ToolSelection:
    responses.check(response_request)
    chat = responses.as_chat(response_request, items.to_messages(response_request.input))
    with translate_errors(responses.translated):
        prompt.check(chat)
        found = select_tools(chat)
    assert found
    return found


def answered(offer: ToolSelection, *calls: tuple[str, str]) -> list[dict[str, Any]]:
    output, parser = (
        OutputItems("1"),
        OutputParser(OutputFormat(tools=JSON_LIST, names=offer.names, callees=offer.callees)),
    )
    for part in parser.feed(JSON_LIST.write(calls)) + parser.finish():
        output.add(part.event)
    return [{key: item[key] for key in item if key not in ("id", "call_id", "status")} for item in output.items]


class TestNamespaces:
    def test_are_flat_to_the_model_and_not_to_the_client(self) -> None:
        selected = offer(request(function("lookup"), KEYS, {"type": "web_search"}, PATCH))
        assert [each.name for each in selected.callable] == ["lookup", "patch", "keys__lookup", "keys__edit"]
        assert selected.callable[2].description == "About keys. Looks up."
        assert selected.params == (
            *("tools.0.parameters", "tools.3.format"),
            *("tools.1.tools.0.parameters", "tools.1.tools.1.format"),
        )
        assert answered(
            selected, ("keys__lookup", '{"a": 1}'), ("keys__edit", '{"input": "aa"}'), ("lookup", "{}")
        ) == [
            {"type": "function_call", "name": "lookup", "arguments": '{"a": 1}', "namespace": "keys"},
            {"type": "custom_tool_call", "name": "edit", "input": "aa", "namespace": "keys"},
            {"type": "function_call", "name": "lookup", "arguments": "{}"},
        ]

    def test_each_name_is_short_and_the_only_one(self) -> None:
        selected = offer(
            request(function("a__b"), namespace("a", function("b")), namespace("n" * 60, function("c" * 60)))
        )
        first, second, third = (each.name for each in selected.callable)
        assert first == "a__b" != second
        assert len(third) == 64
        assert third == flat("c" * 60, "n" * 60) != flat("d" * 60, "n" * 60)
        (call,) = answered(selected, (second, "{}"))
        assert (call["namespace"], call["name"]) == ("a", "b")

    @pytest.mark.parametrize(
        ("choice", "names"),
        [
            ({"type": "function", "name": "lookup"}, "lookup"),
            ({"type": "function", "name": "lookup", "namespace": "keys"}, "keys__lookup"),
            ({"type": "function", "name": "keys__lookup"}, "keys__lookup"),
            ({"type": "function", "name": "only"}, "more__only"),
            ({"type": "custom", "name": "edit"}, "keys__edit"),
            ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "namespace", "name": "keys"}]}, "keys__*"),
            ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "tool_search"}]}, "tool_search"),
        ],
    )
    def test_can_be_chosen(self, choice: dict[str, Any], names: str) -> None:
        selected = request(function("lookup"), KEYS, namespace("more", function("only")), SEARCH, tool_choice=choice)
        expected = {"keys__lookup", "keys__edit"} if names == "keys__*" else {names}
        assert offer(selected).names == expected

    @pytest.mark.parametrize(
        ("tool", "param"),
        [
            (namespace("a", function("b", parameters={"type": "string"})), "tools.0.tools.0.parameters"),
            (function("b", parameters={"type": "string"}), "tools.0.parameters"),
        ],
    )
    def test_refusal_names_the_place(self, tool: dict[str, Any], param: str) -> None:
        with pytest.raises(InvalidRequest) as refused:
            offer(request(tool))
        assert refused.value.param == param

    def test_what_is_not_there_cannot_be_chosen(self) -> None:
        with pytest.raises(InvalidRequest) as refused:
            offer(request(KEYS, tool_choice={"type": "function", "name": "lookup", "namespace": "k"}))
        assert refused.value.param == "tool_choice"

    @pytest.mark.parametrize("called", [{"name": "lookup", "namespace": "keys"}, {"name": "keys__lookup"}])
    def test_calls_of_before_are_shown_flat(self, called: dict[str, str]) -> None:
        (message,) = items.to_messages([{"type": "function_call", "call_id": "c", "arguments": "{}", **called}])
        assert prompt.message(message)["tool_calls"][0]["function"] == {"name": "keys__lookup", "arguments": {}}


class TestSearch:
    def test_is_called_as_a_function(self) -> None:
        selected = offer(request(SEARCH))
        assert selected.callees == {"tool_search": Callee("tool_search", "tool_search")}
        assert selected.callable[0].description == "Finds tools."
        assert answered(selected, ("tool_search", '{"query": "a }"}')) == [
            {"type": "tool_search_call", "execution": "client", "arguments": {"query": "a }"}}
        ]

    def test_what_it_found_can_be_called(self) -> None:
        selected = request(SEARCH, PATCH, input=found(KEYS, function("late"), PATCH))
        assert offer(selected).names == {"tool_search", "patch", "keys__lookup", "keys__edit", "late"}
        call, result = items.to_messages(selected.input)
        assert prompt.message(call)["tool_calls"][0]["function"] == {
            "name": "tool_search",
            "arguments": {"query": "q"},
        }
        assert result.content == "These can be called now: keys__lookup, keys__edit, late, patch"

    def test_brings_what_was_deferred(self) -> None:
        late = function("late", defer_loading=True)
        tools = (SEARCH, late, namespace("a", function("b"), defer_loading=True), function("soon"))
        assert offer(request(*tools)).names == {"tool_search", "soon"}
        assert offer(request(*tools, input=found(late))).names == {"tool_search", "soon", "late"}
        assert responses.unknown_keys(request(*tools)) == []

    def test_without_it_nothing_is_deferred(self) -> None:
        late = function("late", defer_loading=True)
        selected = request({"type": "tool_search"}, late, namespace("a", late))
        assert offer(selected).names == {"late", "a__late"}
        assert sorted(responses.unknown_keys(selected)) == [
            "tools.0.tool_search",
            "tools.1.defer_loading",
            "tools.2.tools.0.defer_loading",
        ]


def test_custom_calls_are_shown_as_the_model_would_write_them() -> None:
    past = [
        {"type": "custom_tool_call", "call_id": "c", "name": "edit", "namespace": "keys", "input": "a\n"},
        {"type": "custom_tool_call_output", "call_id": "c", "output": "done"},
    ]
    call, result = items.to_messages(request(input=past).input)
    assert prompt.message(call)["tool_calls"][0]["function"] == {"name": "keys__edit", "arguments": {"input": "a\n"}}
    assert (result.tool_call_id, result.content) == ("c", "done")
    (kept, _) = items.from_messages([call, result])
    assert json.dumps(kept) == json.dumps(
        {"type": "custom_tool_call", "call_id": "c", "name": "keys__edit", "input": "a\n"}
    )
