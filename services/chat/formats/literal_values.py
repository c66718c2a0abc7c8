"""Strings, numbers and words of Python, as JSON writes them."""

import json
import math
import re
import unicodedata

WORDS = {"True": "true", "true": "true", "False": "false", "false": "false", "None": "null", "null": "null"}
JSON_NUMBER = re.compile(r"-?(?:0|[1-9]\d*)(?:\.\d+)?(?:[eE][+-]?\d+)?")
ESCAPE = re.compile(
    r"\\(?:x[0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|U[0-9a-fA-F]{8}|N\{[^{}]{1,99}\}|[0-7]{1,3}|[^xuUN0-7])", re.DOTALL
)
CUT_OFF = re.compile(  # by the end of what has come
    r"\\(?:x[0-9a-fA-F]?|u[0-9a-fA-F]{0,3}|U[0-9a-fA-F]{0,7}|N(?:\{[^{}]{0,99})?|[0-7]{1,2})?"
)
LETTERS = {"a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\n": ""}
SURROGATES = frozenset(map(chr, range(0xD800, 0xE000)))  # which no text may have
SAME = ("\\", "'", '"')


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)[1:-1]


def unescaped(text: str) -> str:
    """An escape of Python as it is in a JSON string."""
    kind, rest = text[1:2], text[2:]
    if kind in SAME:
        return quoted(kind)
    if kind in LETTERS:
        return quoted(LETTERS[kind])
    if kind == "u" and len(rest) == 4:
        return text  # perhaps half of a pair
    return quoted(_character(text, kind, rest))


def _character(text: str, kind: str, rest: str) -> str:
    try:
        if kind == "N":
            return unicodedata.lookup(rest[1:-1])
        found = chr(int(rest, 16) if kind in ("x", "U") else int(text[1:], 8))
        return text if found in SURROGATES else found
    except (KeyError, ValueError, OverflowError):
        return text


def json_of_bare(text: str) -> str:
    if text in WORDS:
        return WORDS[text]
    if JSON_NUMBER.fullmatch(text):
        return text
    return _number(text) or json.dumps(text, ensure_ascii=False)


def _number(text: str) -> str:
    """One that Python writes in another way than JSON."""
    if not re.match(r"[+-]?\.?\d", text):
        return ""
    try:
        return str(int(text, 0))
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        return ""
    return json.dumps(value) if math.isfinite(value) else ""
