"""Pieces of Lark grammars for answers, in the form that `GrammarSpec` of kind `lark` takes."""

import json
import re
from collections.abc import Iterable
from typing import Any

from llguidance import regex_to_lark

from schemas.tool_schema import Function, Grammar
from services.errors import InvalidRequest

MARKER = re.compile(r"<\S+>|\[[A-Z_]+\]")  # texts of this form are special tokens, where the tokenizer has them
SPECIAL = re.compile(r"[\\.+*?()|\[\]{}^$#&~/-]")
BRACE = re.compile(r"^\s*\}\s*$", re.MULTILINE)
COMBINING = {"allOf", "anyOf", "oneOf", "$ref", "if", "not", "patternProperties", "unevaluatedProperties"}


def lark(parts: Iterable[str]) -> str:
    """The parts, one after the other."""
    return " ".join(marker(part) if MARKER.fullmatch(part) else json.dumps(part) for part in parts)


def marker(text: str) -> str:
    return f"<{json.dumps(text)}>"


def pattern(text: str) -> str:
    """A regular expression, as it stands between slashes, that matches just this text."""
    return SPECIAL.sub(r"\\\g<0>", text).replace("\n", "\\n")


def schema_of(function: Function) -> str:
    """Arguments are an object. A schema that is not strict is enforced as far as it can be."""
    schema: dict[str, Any] = {"properties": {}, **function.parameters, "type": "object"}
    if not COMBINING & schema.keys():
        schema.setdefault("additionalProperties", False)  # a small model would make up properties nobody asked for
    return json.dumps({**schema, "x-guidance": {"lenient": not function.strict}})


def text_rules(name: str, grammar: Grammar, param: str) -> list[str]:
    """One rule, `name`: a text of the grammar. What it ignores, and what its rules are called, stays inside.

    `param`: what the request calls the grammar.
    """
    if BRACE.search(grammar.definition):
        raise InvalidRequest("'%s': a line of its grammar is a brace alone", param)
    return [f"{name}: %lark {{\n{_as_lark(grammar)}\n}}\n"]


def _as_lark(grammar: Grammar) -> str:
    if grammar.syntax == "lark":
        return grammar.definition
    pattern = regex_to_lark(grammar.definition, "d")
    return f"start: /{pattern}/" if pattern else 'start: ""'
