"""Tools and thinking over HTTP, around an engine that says what it is told to."""

import json
from typing import Any

import httpx2
import pytest

from tests.apps import Site
from tests.fakes import TEMPLATE, FakeEngine, FakeTokenizer

TOOL = {"type": "function", "function": {"name": "get_time", "description": "The time now"}}
BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "How late is it?"}], "tools": [TOOL]}
CALL = ('[{"name": "get', '_time", "argu', 'ments": {"a"', ': "é"}', "}]")
THINKS = TEMPLATE + "{# </think> #}"


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(*CALL)


async def send(site: Site, **more: object) -> httpx2.Response:
    return await site.client.post("/v1/chat/completions", json=BODY | more)


async def answer(site: Site, **more: object) -> dict[str, Any]:
    response = await send(site, **more)
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    return body


async def chunks(site: Site, **more: object) -> list[dict[str, Any]]:
    lines = (await send(site, stream=True, **more)).text.splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]


async def test_plain_answer_has_the_call_and_no_content(site: Site) -> None:
    (choice,) = (await answer(site))["choices"]
    (call,) = choice["message"].pop("tool_calls")
    assert choice["message"] == {"role": "assistant", "content": None, "refusal": None}
    assert choice["finish_reason"] == "tool_calls"
    assert call.pop("id").startswith("call_")
    assert call == {"type": "function", "function": {"name": "get_time", "arguments": '{"a": "é"}'}}


async def test_stream_sends_the_name_once_then_the_arguments(site: Site) -> None:
    _, first, *rest, last = [chunk["choices"][0] for chunk in await chunks(site)]
    (begun,) = first["delta"]["tool_calls"]
    assert begun == {
        "index": 0,
        "id": begun["id"],
        "type": "function",
        "function": {"name": "get_time", "arguments": ""},
    }
    parts = [each["delta"]["tool_calls"] for each in rest]
    assert all(part.keys() == {"index", "function"} and part["function"].keys() == {"arguments"} for (part,) in parts)
    assert "".join(part["function"]["arguments"] for (part,) in parts) == '{"a": "é"}'
    assert (last["delta"], last["finish_reason"]) == ({}, "tool_calls")


async def test_text_without_tools_is_text(site: Site) -> None:
    (choice,) = (await answer(site, tools=[]))["choices"]
    assert choice["message"] == {"role": "assistant", "content": "".join(CALL), "refusal": None}
    assert choice["finish_reason"] == "stop"


async def test_tool_that_is_not_served_is_left_aside(site: Site, engine: FakeEngine) -> None:
    response = await send(site, tools=[{"type": "web_search", "filters": {}}, TOOL], tool_choice="required")
    assert (response.status_code, response.headers["x-parley-ignored"]) == (200, "tools.0.web_search")
    assert "web_search" not in engine.prompts[-1]
    refused = await send(
        site, tools=[{"type": "mcp"}, TOOL | {"function": {"name": "f", "parameters": {"type": "array"}}}]
    )
    assert refused.json()["error"]["param"] == "tools.1.function.parameters"


async def test_tools_are_rendered_and_a_call_is_forced(site: Site, engine: FakeEngine) -> None:
    await answer(site, tool_choice="required")
    assert engine.prompts[-1].startswith("<system>You can call these functions")
    grammar = engine.jobs[-1].sampling.grammar
    assert grammar
    assert grammar.kind == "lark"
    await answer(site, tool_choice="none")
    assert engine.prompts[-1] == "<user>How late is it?\n<assistant>\n"
    assert engine.jobs[-1].sampling.grammar is None


async def test_result_is_an_answer_to_a_call_that_is_remembered(site: Site, engine: FakeEngine) -> None:
    begun = await site.client.post("/chat/new/message/", json={"prompt": "Hi"})
    conversation = begun.json()["conversation_id"]
    (choice,) = (await answer(site, conversation=conversation))["choices"]
    id = choice["message"]["tool_calls"][0]["id"]
    engine.script = ("Late.",)
    result = {"role": "tool", "tool_call_id": id, "content": "23:59"}
    (choice,) = (await answer(site, conversation=conversation, messages=[result]))["choices"]
    assert choice["message"]["content"] == "Late."
    expected = (
        '<assistant>[{"name": "get_time", "arguments": {"a": "é"}}]\n<user>Result of get_time:\n23:59\n<assistant>\n'
    )
    assert engine.prompts[-1].endswith(expected)


async def test_thinking_is_separated_and_counted(site: Site, engine: FakeEngine) -> None:
    engine.tokenizer = FakeTokenizer(THINKS)
    engine.script = ("<think>\n", "Hm", ".\n</thi", "nk>\n\n", "Now.")
    body = await answer(site, tools=[])
    assert body["choices"][0]["message"] == {
        "role": "assistant",
        "content": "Now.",
        "refusal": None,
        "reasoning_content": "Hm.",
    }
    usage = body["usage"]
    assert (usage["completion_tokens"], usage["completion_tokens_details"]["reasoning_tokens"]) == (5, 3)
    deltas = [chunk["choices"][0]["delta"] for chunk in await chunks(site, tools=[])]
    assert deltas[1:] == [{"reasoning_content": "Hm"}, {"reasoning_content": "."}, {"content": "Now."}, {}]


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tools": [TOOL, TOOL]}, "tools.1.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": []}}]}, "tools.0.function.parameters"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "mcp"}], "tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"function": {"name": "f"}}]}, "tools.0.type"),
        ({"tools": [5]}, "tools.0"),
        ({"tool_choice": "any"}, "tool_choice"),
        ({"messages": [{"role": "tool", "tool_call_id": "call_1", "content": "x"}]}, "messages.0.tool_call_id"),
        ({"reasoning_effort": "enormous"}, "reasoning_effort"),
        ({"thinking_token_budget": -1}, "thinking_token_budget"),
        ({"functions": [{"name": "f"}]}, "functions"),
    ],
)
async def test_refusal_names_what_is_wrong(site: Site, more: dict[str, object], param: str) -> None:
    response = await send(site, **more)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
