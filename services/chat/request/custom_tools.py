"""Custom tools, whose input is a text, as models know them: functions with the input as their only argument.

Models have learned from calls of functions: what they write of themselves, and are shown of earlier calls, is
`{"name": "f", "arguments": {"input": "…"}}`, or what their format has for that. The text is read out of that while it
comes (`parsing/input_text.py`).

A call that is held to a grammar is written as the format's `text_begin` (`{"name": "f"}` and a line end, in most) and
the text as it is, to the mark that ends a call or to the end of the answer. Inside a JSON string a grammar could not be
held to: lexers look one letter ahead, and there line ends and quotes are two.
"""

from typing import Any

from schemas.tool_schema import Custom, Function, Grammar
from services.chat.parsing.input_text import INPUT

GRAMMARS = {"lark": "a text of this Lark grammar", "regex": "a text that matches this regular expression as a whole"}


def as_function(custom: Custom) -> Function:
    """One with a grammar is strict: that is what the grammar is for."""
    grammar = custom.grammar
    text = {"type": "string", "description": _described(grammar)}
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {INPUT: text},
        "required": [INPUT],
        "additionalProperties": False,
    }
    return Function(name=custom.name, description=custom.description, parameters=schema, strict=grammar is not None)


def _described(grammar: Grammar | None) -> str:
    return f"{GRAMMARS[grammar.syntax]}:\n{grammar.definition}" if grammar else "any text"
