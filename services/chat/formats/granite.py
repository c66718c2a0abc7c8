"""Granite 3: `<|tool_call|>[{"name": …, "arguments": {…}}]`."""

from services.chat.formats.json_calls import ARGUMENTS, JsonCalls, object_with

MARKER = "<|tool_call|>"

GRANITE = JsonCalls(
    name="granite",
    detects=lambda template: MARKER in template,
    headers=(object_with("arguments"),),
    before=(MARKER, "["),
    call=('{"name": "NAME", "arguments": ', ARGUMENTS, "}"),
    between=(", ",),
    after=("]",),
    marker=MARKER,
)
