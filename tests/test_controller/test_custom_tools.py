"""Custom tools and namespaces over HTTP: answered, streamed, stored, and told to the model again."""

import json
from typing import Any

import pytest

from tests.apps import Site
from tests.fakes import FakeEngine

TEXT = 'a "b"\n'
SAID = '[{"name": "patch", "arguments": {"input": "a \\"b\\"\\n"}}, {"name": "keys__lookup", "arguments": {"k": 1}}]'
CUSTOM = {"type": "custom", "custom": {"name": "patch", "description": "Patches"}}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "tools": [CUSTOM]}
KEYS = {"type": "namespace", "name": "keys", "tools": [{"type": "function", "name": "lookup"}]}
RESPONSE: dict[str, Any] = {"input": "hi", "tools": [{"type": "custom", "name": "patch"}, KEYS]}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(*SAID)  # a letter each


async def post(site: Site, path: str, body: dict[str, Any]) -> dict[str, Any]:
    response = await site.client.post(path, json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def events(site: Site, path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    lines = (await site.client.post(path, json=body | {"stream": True})).text.splitlines()
    return [json.loads(line.removeprefix("data: ")) for line in lines if line.startswith("data: {")]


async def test_chat_has_the_call_and_finds_it_again(site: Site) -> None:
    answer = await post(site, "/v1/chat/completions", CHAT | {"store": True})
    (call, *_) = answer["choices"][0]["message"]["tool_calls"]
    assert call == {"id": call["id"], "type": "custom", "custom": {"name": "patch", "input": TEXT}}
    found = (await site.client.get(f"/v1/chat/completions/{answer['id']}")).json()
    assert found["choices"][0]["message"]["tool_calls"][0] == call
    assert found["tools"] == [CUSTOM]


async def test_chat_is_shown_its_call_again(site: Site, engine: FakeEngine) -> None:
    call = {"id": "c", "type": "custom", "custom": {"name": "patch", "input": TEXT}}
    past = [{"role": "assistant", "tool_calls": [call]}, {"role": "tool", "tool_call_id": "c", "content": "done"}]
    await post(site, "/v1/chat/completions", CHAT | {"messages": [*CHAT["messages"], *past]})
    shown = str(engine.tokenizer.decode(list(engine.jobs[-1].prompt)))
    assert '[{"name": "patch", "arguments": {"input": "a \\"b\\"\\n"}}]' in shown
    assert "Result of patch:\ndone" in shown


async def test_chat_streams_the_input(site: Site) -> None:
    deltas = [chunk["choices"][0]["delta"] for chunk in await events(site, "/v1/chat/completions", CHAT)]
    calls = [call for delta in deltas for call in delta.get("tool_calls", ()) if call["index"] == 0]
    assert calls[0] == calls[0] | {"type": "custom", "custom": {"name": "patch", "input": ""}}
    assert all("function" not in call for call in calls)
    assert "".join(call["custom"]["input"] for call in calls) == TEXT
    assert len(calls) > 3


async def test_response_has_the_calls_and_goes_on_from_them(site: Site, engine: FakeEngine) -> None:
    answer = await post(site, "/v1/responses", RESPONSE)
    custom, function = answer["output"]
    assert custom == custom | {"type": "custom_tool_call", "name": "patch", "input": TEXT, "status": "completed"}
    assert custom["id"].startswith("ctc_")
    assert function == function | {"type": "function_call", "namespace": "keys", "name": "lookup"}
    assert (await site.client.get(f"/v1/responses/{answer['id']}")).json()["output"] == answer["output"]
    results = [
        {"type": "custom_tool_call_output", "call_id": custom["call_id"], "output": "done"},
        {"type": "function_call_output", "call_id": function["call_id"], "output": "found"},
    ]
    await post(site, "/v1/responses", RESPONSE | {"input": results, "previous_response_id": answer["id"]})
    shown = str(engine.tokenizer.decode(list(engine.jobs[-1].prompt)))
    assert SAID in shown
    assert "Result of patch:\ndone\n\nResult of keys__lookup:\nfound" in shown


async def test_stream_of_a_response_adds_up_to_it(site: Site) -> None:
    received = await events(site, "/v1/responses", RESPONSE)
    assert (
        "".join(each["delta"] for each in received if each["type"] == "response.custom_tool_call_input.delta") == TEXT
    )
    (done,) = (each for each in received if each["type"] == "response.custom_tool_call_input.done")
    added = [each["item"] for each in received if each["type"] == "response.output_item.added"]
    assert (done["input"], done["output_index"], done["item_id"]) == (TEXT, 0, added[0]["id"])
    assert (added[0]["input"], added[1]["namespace"]) == ("", "keys")
    ended = [each["item"] for each in received if each["type"] == "response.output_item.done"]
    assert ended == received[-1]["response"]["output"]
