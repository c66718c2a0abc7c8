"""Llama 4, and others with templates that tell of it: `[f(a=1, b="x"), g()]`, also behind `<|python_start|>`."""

import re

from services.chat.formats.python_calls import PythonCalls

EXAMPLE = re.compile(r"\[func(tion)?_?(name)?_?1\(")  # in templates

PYTHONIC = PythonCalls(
    name="pythonic",
    detects=lambda template: EXAMPLE.search(template) is not None,
    before=("[",),
    between=(", ",),
    after=("]",),
    ends=("<|python_end|>",),
    marker="<|python_start|>",
    bare=True,
)
