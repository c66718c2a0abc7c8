"""JSON in an answer: where it ends while it comes, and whether it is a call."""

import json
from collections.abc import Sequence
from dataclasses import dataclass


class JsonEnd:
    """Finds where an object or a list ends. `depth`: how many of them have begun already."""

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._quoted = False
        self._escaped = False

    @property
    def is_open(self) -> bool:
        return self._depth > 0

    @property
    def is_quoted(self) -> bool:
        """Inside a string."""
        return self._quoted

    def feed(self, text: str) -> int | None:
        """How many characters of `text` still belong to it; None: all of them, and more is to come."""
        for place, letter in enumerate(text, 1):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped = letter == "\\"
                self._quoted = letter != '"'
            elif letter == '"':
                self._quoted = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return place
        return None


ARGUMENTS = ("arguments", "parameters", "input")  # what models call them


@dataclass(frozen=True, slots=True)
class Called:
    name: str
    arguments: str


def call_in(text: str, name_key: str = "name", arguments_keys: Sequence[str] = ARGUMENTS) -> Called | None:
    """The call that an object is, if it is one."""
    try:
        parsed = json.loads(text, strict=False)  # models write line ends as they are
    except (ValueError, RecursionError):
        return None
    name = parsed.get(name_key)
    arguments: object = next((parsed[key] for key in arguments_keys if parsed.get(key) is not None), {})
    if not isinstance(name, str):
        return None
    return Called(name, arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False))
