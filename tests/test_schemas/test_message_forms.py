"""Messages of older and newer clients are read in one form."""

from typing import Any

import pytest
from pydantic import ValidationError

from schemas.chat_schema import ChatMessage
from schemas.tool_schema import CustomToolCall


def message(**fields: Any) -> ChatMessage:
    return ChatMessage.model_validate(fields)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"content": None},
        {"content": []},
        {"content": None, "tool_calls": []},
        {"content": None, "reasoning_content": "t"},
        {"content": None, "audio": {"id": "a"}},
    ],
    ids=str,
)
def test_empty_assistant_message_is_accepted(fields: dict[str, Any]) -> None:
    assert message(role="assistant", **fields).content == ""


@pytest.mark.parametrize("role", ["user", "system", "developer", "tool"])
def test_others_have_content(role: str) -> None:
    for content in (None, []):
        with pytest.raises(ValidationError, match="content is required"):
            message(role=role, content=content, **({"tool_call_id": "c"} if role == "tool" else {}))


def test_reasoning_has_two_names() -> None:
    assert message(role="assistant", reasoning="t").reasoning_content == "t"
    assert message(role="assistant", reasoning="t", reasoning_content="u").reasoning_content == "u"


def test_calls_from_before_there_were_tools() -> None:
    called = message(role="assistant", content=None, function_call={"name": "f", "arguments": "{}"})
    assert [(call.id, call.function.name, call.function.arguments) for call in called.tool_calls] == [("f", "f", "{}")]
    result = message(role="function", name="f", content="1")
    assert (result.role, result.tool_call_id, result.content) == ("tool", "f", "1")


def test_calls_of_custom_tools() -> None:
    call = {"id": "c", "type": "custom", "custom": {"name": "patch", "input": "*** Begin"}}
    (read,) = message(role="assistant", tool_calls=[call]).tool_calls
    assert isinstance(read, CustomToolCall)
    assert (read.id, read.custom.name, read.custom.input) == ("c", "patch", "*** Begin")


@pytest.mark.parametrize(
    "fields",
    [{"function_call": {}}, {"tool_calls": [{"id": "c", "type": "custom", "custom": "f"}]}, {"tool_calls": ["f"]}],
    ids=str,
)
def test_malformed_calls_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        message(role="assistant", **fields)
