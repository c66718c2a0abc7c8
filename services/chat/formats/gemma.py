"""Gemma 4: `<|tool_call>call:f{a:1}<tool_call|>`; FunctionGemma, the same between marks of its own."""

from services.chat.formats.gemma_calls import GemmaCalls

GEMMA = GemmaCalls("gemma", begin="<|tool_call>", end="<tool_call|>", quote='<|"|>', stop="<|tool_response>")
FUNCTION_GEMMA = GemmaCalls(
    "function-gemma",
    begin="<start_function_call>",
    end="<end_function_call>",
    quote="<escape>",
    stop="<start_function_response>",
)
