"""Calls as items: of functions, of custom tools, and for more tools."""

import json
from collections.abc import Iterator
from typing import Any

from services.chat.events import Arguments, CallKind, ToolCall

Item = dict[str, Any]

# Type of the item -> its key that grows while the call comes.
STREAMED_KEYS = {"function_call": "arguments", "custom_tool_call": "input"}

KINDS: dict[str, CallKind] = {
    "function_call": "function",
    "custom_tool_call": "custom",
    "tool_search_call": "tool_search",
}


def new_call_item(call: ToolCall) -> Item:
    """As it is before anything of its arguments has come."""
    where = {"namespace": call.namespace} if call.namespace is not None else {}
    match call.kind:
        case "function":
            return function_call(call.id, call.name, "") | where
        case "custom":
            return custom_tool_call(call.id, call.name, "") | where
        case "tool_search":
            return {"type": "tool_search_call", "call_id": call.id, "execution": "client", "arguments": {}}


def events(item: Item, call: int, index: int) -> Iterator[ToolCall | Arguments]:
    """That the item was made of; `call`: its place among the calls of its choice."""
    kind = KINDS[item["type"]]
    text = json.dumps(item["arguments"]) if kind == "tool_search" else item[STREAMED_KEYS[item["type"]]]
    name = item.get("name", kind)
    yield ToolCall(item["call_id"], name, call, index=index, kind=kind, namespace=item.get("namespace"))
    yield Arguments(text, call, index=index, kind=kind)


def function_call(call_id: str, name: str, arguments: str) -> Item:
    return {"type": "function_call", "call_id": call_id, "name": name, "arguments": arguments}


def custom_tool_call(call_id: str, name: str, input: str) -> Item:
    return {"type": "custom_tool_call", "call_id": call_id, "name": name, "input": input}


def without_arguments(item: Item) -> Item:
    """As it began."""
    empty: object = {} if item["type"] == "tool_search_call" else ""
    return item | {STREAMED_KEYS.get(item["type"], "arguments"): empty, "status": "in_progress"}


def parse_arguments(arguments: str) -> dict[str, Any]:
    """Of a search, whose item has them as an object; none as long as they are not whole."""
    try:
        parsed = json.loads(arguments)
    except (ValueError, RecursionError):
        return {}
    return parsed if isinstance(parsed, dict) else {}
