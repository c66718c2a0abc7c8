"""How much a JSON text holds, counted before it is parsed: a parser holds the GIL, and so stops the event loop.

Characters inside of strings, as in prose, do not count.
"""

import re
from collections.abc import Iterator

MAX_ESCAPES = 3_000_000  # a text of nothing but \\u0000 has fewer
MAX_VALUES = 600_000  # of them most are numbers: token ids
MAX_NAMED = 150_000  # strings, keys among them, objects and lists
WINDOW = 65_536  # bytes that are searched in one go
QUOTE = ord('"')
IN_STRING = re.compile(rb'(?:[^"\\]++|\\.)*+', re.DOTALL)


class TooMuch(ValueError):
    def __init__(self, limit: int, what: str) -> None:
        super().__init__(f"has more than {limit} {what}")


def check(text: bytes) -> None:
    """Raises TooMuch. It may be no JSON at all."""
    if text.count(b"\\") > MAX_ESCAPES:
        raise TooMuch(MAX_ESCAPES, "escapes")
    num_named = num_values = 0
    for start, end in between_strings(text):
        num_named += 1 + text.count(b"[", start, end) + text.count(b"{", start, end)
        num_values += text.count(b",", start, end)
        if num_named > MAX_NAMED:
            raise TooMuch(MAX_NAMED, "strings, objects and lists")
        if num_values > MAX_VALUES:
            raise TooMuch(MAX_VALUES, "values")


def between_strings(text: bytes) -> Iterator[tuple[int, int]]:
    """Where each piece begins and ends; none is longer than what is searched in one go."""
    at = 0
    while at < len(text):
        end = text.find(b'"', at, at + WINDOW)
        if end < 0:
            yield at, min(at + WINDOW, len(text))
            at += WINDOW
        else:
            yield at, end
            at = _end_of_string(text, end + 1)


def _end_of_string(text: bytes, at: int) -> int:
    while found := IN_STRING.match(text, at, at + WINDOW):
        if found.end() < len(text) and text[found.end()] == QUOTE:
            return found.end() + 1
        if found.end() == at:  # the text ends with a backslash, or is over
            break
        at = found.end()
    return len(text)
