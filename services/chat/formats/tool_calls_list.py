"""Hunyuan A13B, Apriel: `<tool_calls>[{"name": …, "arguments": {…}}]</tool_calls>`."""

import re

from services.chat.formats.json_calls import ARGUMENTS, JsonCalls, object_with

BEGIN, END = "<tool_calls>", "</tool_calls>"

TOOL_CALLS_LIST = JsonCalls(
    name="tool-calls-list",
    detects=lambda template: re.search(rf"{BEGIN}\[", template) is not None,
    headers=(object_with("arguments"),),
    before=(BEGIN, "["),
    call=('{"name": "NAME", "arguments": ', ARGUMENTS, "}"),
    between=(", ",),
    after=("]", END),
    marker=BEGIN,
    end=END,
)
