"""Calls of tools that are not served here, and their results, as a chat has calls of functions.

A response's history may have been made by another server, or by tools that the client runs itself. What was called and
what came of it is shown to the model in the one form that its template knows; what says nothing to a model is left
aside (`UNREAD` in `schemas/item_schema.py`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Item = Mapping[str, Any]

NOT_KEPT = "The result was not kept."

# Type of the call -> its keys that say what was asked for.
CALLS: dict[str, tuple[str, ...]] = {
    "apply_patch_call": ("operation",),
    "code_interpreter_call": ("code",),
    "computer_call": ("action", "actions"),
    "file_search_call": ("queries",),
    "local_shell_call": ("action",),
    "mcp_call": ("arguments",),
    "program": ("code",),
    "shell_call": ("action",),
}
# Those that ran where they were called -> their keys that say what came of it.
RESULTS: dict[str, tuple[str, ...]] = {
    "code_interpreter_call": ("outputs",),
    "file_search_call": ("results",),
    "mcp_call": ("output", "error"),
}
# Type of what a client brings -> its keys that say what came of the call.
OUTPUTS: dict[str, tuple[str, ...]] = {
    "apply_patch_call_output": ("output", "status"),
    "computer_call_output": ("output",),
    "local_shell_call_output": ("output",),
    "program_output": ("result",),
    "shell_call_output": ("output",),
}


IMAGE = ("image_url", "file_id")  # where it is


@dataclass(frozen=True, slots=True)
class Call:
    id: str
    name: str
    arguments: str
    result: str | None = None  # None: it comes by itself


def call(item: Item) -> Call:
    kind = item["type"]
    name = item.get("name") or kind.removesuffix("_call")
    id = item.get("call_id") or item.get("id") or name
    return Call(id, name, _arguments(item, CALLS[kind]), _result(item, RESULTS[kind]) if kind in RESULTS else None)


def answered_call_id(item: Item) -> str:
    """The id of the call that this is the output of; some name the item instead."""
    id: str = item.get("call_id") or item.get("id") or ""
    return id


def output(item: Item) -> str | list[dict[str, Any]]:
    """A text, or parts as an item has them."""
    value = item.get("output")
    if isinstance(value, dict) and (source := next((name for name in IMAGE if value.get(name)), None)):  # a screenshot
        return [{"type": "input_image", source: value[source]}]
    return _result(item, OUTPUTS[item["type"]])


def _arguments(item: Item, keys: tuple[str, ...]) -> str:
    fields = {key: item[key] for key in keys if key in item}
    if isinstance(text := fields.get("arguments"), str):
        return text
    return json.dumps(fields, ensure_ascii=False)


def _result(item: Item, keys: tuple[str, ...]) -> str:
    found = next((item[key] for key in keys if item.get(key)), NOT_KEPT)
    return found if isinstance(found, str) else json.dumps(found, ensure_ascii=False)
