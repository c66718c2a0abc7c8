"""Items of every type of the contract are taken: put into words for the model, or left aside and named."""

from typing import Any, get_args, get_type_hints

import pytest
from openai.types.responses import response_input_item_param as contract

from schemas.item_schema import UNREAD
from schemas.response_schema import ResponseRequest
from services.chat import items
from services.chat.request import responses

IMAGE = "data:image/png;base64,iVBO"
TEXT = [{"type": "input_text", "text": "hi"}]
SCREENSHOT = {"type": "computer_screenshot", "image_url": IMAGE}
ACTION = {"type": "exec", "command": ["ls"], "env": {}}
# One of each type, and what of it the model is to read; a result follows its call.
SAMPLES: list[tuple[dict[str, Any], str]] = [
    ({"type": "message", "role": "developer", "content": TEXT, "id": "msg_1"}, "hi"),
    ({"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "so"}]}, "so"),
    ({"type": "function_call", "id": "x", "call_id": "c1", "name": "f", "arguments": "{}"}, "f"),
    ({"type": "function_call_output", "id": "fco_1", "call_id": "c1", "output": "one"}, "one"),
    ({"type": "custom_tool_call", "id": "fc_1", "call_id": "c2", "name": "patch", "input": "*** Begin"}, "*** Begin"),
    ({"type": "custom_tool_call_output", "call_id": "c2", "output": TEXT}, "hi"),
    ({"type": "local_shell_call", "id": "l1", "call_id": "c3", "action": ACTION, "status": "completed"}, "ls"),
    ({"type": "local_shell_call_output", "id": "c3", "output": "a.txt"}, "a.txt"),
    ({"type": "local_shell_call", "id": "l2", "call_id": "c4", "action": ACTION, "status": "completed"}, "ls"),
    ({"type": "local_shell_call_output", "id": "l2", "output": "b.txt"}, "b.txt"),
    ({"type": "shell_call", "call_id": "c5", "action": {"commands": ["pwd"]}}, "pwd"),
    ({"type": "shell_call_output", "call_id": "c5", "output": [{"stdout": "/root", "stderr": ""}]}, "/root"),
    ({"type": "apply_patch_call", "call_id": "c6", "operation": {"type": "delete_file", "path": "p"}}, "delete_file"),
    ({"type": "apply_patch_call_output", "call_id": "c6", "status": "completed"}, "completed"),
    ({"type": "computer_call", "id": "k", "call_id": "c7", "action": {"type": "click", "x": 1}}, "click"),
    (
        {
            "type": "computer_call_output",
            "call_id": "c7",
            "output": {"type": "computer_screenshot", "image_url": IMAGE},
        },
        IMAGE,
    ),
    ({"type": "program", "id": "p", "call_id": "c8", "code": "1+1", "fingerprint": "x"}, "1+1"),
    ({"type": "program_output", "id": "q", "call_id": "c8", "result": "2", "status": "completed"}, "2"),
    (
        {
            "type": "mcp_call",
            "id": "m1",
            "name": "find",
            "server_label": "s",
            "arguments": '{"q": 7}',
            "output": "found",
        },
        "found",
    ),
    ({"type": "file_search_call", "id": "s1", "queries": ["river"], "status": "completed"}, "river"),
    ({"type": "code_interpreter_call", "id": "i1", "code": "2+2", "outputs": [{"type": "logs", "logs": "4"}]}, '"4"'),
    ({"type": "web_search_call", "id": "w1", "status": "completed", "action": {"type": "search", "query": "q"}}, ""),
    ({"type": "image_generation_call", "id": "g1", "status": "completed", "result": "iVBO"}, ""),
    ({"type": "mcp_list_tools", "id": "t1", "server_label": "s", "tools": []}, ""),
    ({"type": "mcp_approval_request", "id": "a1", "arguments": "{}", "name": "f", "server_label": "s"}, ""),
    ({"type": "mcp_approval_response", "approval_request_id": "a1", "approve": True}, ""),
    ({"type": "tool_search_call", "arguments": {}}, ""),
    ({"type": "tool_search_output", "tools": []}, ""),
    ({"type": "additional_tools", "role": "developer", "tools": []}, ""),
    ({"type": "configuration_update", "reasoning": {"effort": "low"}}, ""),
]
# Those that are not shown as they are, but say what becomes of the others.
CONTROLS = {"compaction", "compaction_trigger", "item_reference"}
LATER = {"type": "message", "role": "user", "content": TEXT}


def request(*given: dict[str, Any]) -> ResponseRequest:
    return ResponseRequest.model_validate({"input": list(given)})


def test_every_type_of_the_contract_has_a_sample() -> None:
    types = {
        name for each in get_args(contract.ResponseInputItemParam) for name in _types(get_type_hints(each)["type"])
    }
    assert len(types) > 25
    assert types - {sample["type"] for sample, _ in SAMPLES} == CONTROLS


def _types(hint: Any) -> list[str]:
    return [hint] if isinstance(hint, str) else [name for each in get_args(hint) for name in _types(each)]


def test_all_text_reaches_the_model() -> None:
    response_request = request(*(sample for sample, _ in SAMPLES), LATER)
    responses.check(response_request)
    messages = items.to_messages(response_request.input)
    read = str([message.model_dump(exclude_defaults=True) for message in messages])
    assert [words for _, words in SAMPLES if words not in read] == []
    chat = responses.as_chat(response_request, messages)
    responses.prompt.messages(chat, (), None)  # each result is of a call


def test_unread_items_are_named_by_their_type() -> None:
    response_request = request(*(sample for sample, _ in SAMPLES), LATER)
    silent = [f"input.{index}.{sample['type']}" for index, (sample, words) in enumerate(SAMPLES) if not words]
    assert sorted(name for name in responses.unknown_keys(response_request)) == sorted(silent)
    searches = {"tool_search_call", "tool_search_output"}  # those that the client has not run
    assert {sample["type"] for sample, words in SAMPLES if not words} == UNREAD | searches


def test_all_of_it_is_kept_as_it_was_given() -> None:
    for sample, _ in SAMPLES:
        (kept,) = request(sample).input
        assert {**kept, **sample} == kept


def test_the_same_id_twice_is_no_error() -> None:
    given = {"type": "message", "role": "user", "content": TEXT, "id": "msg_1"}
    response_request = request(given, given, {**given, "id": "anything goes"})
    responses.check(response_request)
    assert [item["id"] for item in response_request.input] == ["msg_1", "msg_1", "anything goes"]


@pytest.mark.parametrize("type", ["mesage", "x"])
def test_type_of_no_contract_is_refused(type: str) -> None:
    with pytest.raises(responses.InvalidRequest) as refused:
        responses.check(request({"type": type}))
    assert refused.value.param == "input.0.type"
