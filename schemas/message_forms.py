"""Calls in a chat's messages, as older clients write them, in the one form that is read."""

from typing import Any


def with_tool_calls(message: Any) -> Any:
    """`function_call` and the role `function`, from before there were tools. The function's name is the call's id."""
    if not isinstance(message, dict):
        return message
    if message.get("role") == "function":
        return {**_without(message, "name"), "role": "tool", "tool_call_id": message.get("name")}
    called = message.get("function_call")
    if not isinstance(called, dict) or message.get("tool_calls"):
        return message
    call = {"id": called.get("name"), "type": "function", "function": called}
    return {**_without(message, "function_call"), "tool_calls": [call]}


def _without(message: dict[str, Any], key: str) -> dict[str, Any]:
    return {name: value for name, value in message.items() if name != key}
