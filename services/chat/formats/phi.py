"""Phi-4-mini: `<|tool_call|>[{"name": …, "arguments": {…}}]<|/tool_call|>`, and as its first templates had it,
`functools[{"name": …, "arguments": {…}}]`."""

from services.chat.formats.json_calls import ARGUMENTS, JsonCalls, object_with

HEADERS = (object_with("arguments"), object_with("parameters"))
CALL = ('{"name": "NAME", "arguments": ', ARGUMENTS, "}")
BEGIN, END = "<|tool_call|>", "<|/tool_call|>"
FUNCTOOLS_BEGIN = "functools["

PHI = JsonCalls(
    name="phi",
    detects=lambda template: "<|tool|>" in template and "<|/tool|>" in template,
    headers=HEADERS,
    before=(BEGIN, "["),
    call=CALL,
    between=(", ",),
    after=("]", END),
    marker=BEGIN,
    end=END,
)
FUNCTOOLS = JsonCalls(
    name="functools",
    detects=lambda template: FUNCTOOLS_BEGIN in template,
    headers=HEADERS,
    before=(FUNCTOOLS_BEGIN,),
    call=CALL,
    between=(", ",),
    after=("]",),
    marker=FUNCTOOLS_BEGIN,
)
