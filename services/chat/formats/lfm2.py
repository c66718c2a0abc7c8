"""LFM2 and 2.5: `<|tool_call_start|>[f(a=1, b="x"), g()]<|tool_call_end|>`."""

from services.chat.formats.python_calls import PythonCalls

BEGIN, END = "<|tool_call_start|>", "<|tool_call_end|>"
MARKS = (BEGIN, "<|tool_list_start|>", "List of tools: [")  # of which each template has one

LFM2 = PythonCalls(
    name="lfm2",
    detects=lambda template: any(each in template for each in MARKS),
    before=(BEGIN, "["),
    between=(", ",),
    after=("]", END),
    marker=BEGIN,
)
