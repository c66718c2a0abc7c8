"""Olmo 3: a call a line, `<function_calls>\nf(a=1, b="x")\ng()\n</function_calls>`, with JSON's `true` and `null`."""

from services.chat.formats.python_calls import PythonCalls
from services.chat.formats.python_grammar import JSON_WORDS

BEGIN, END = "<function_calls>", "</function_calls>"

OLMO = PythonCalls(
    name="olmo",
    detects=lambda template: BEGIN in template,
    before=(BEGIN, "\n"),
    between=("\n",),
    after=("\n", END),
    marker=BEGIN,
    words=JSON_WORDS,
)
