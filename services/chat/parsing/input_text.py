"""The input of a custom tool, read out of the JSON arguments that the model writes it in, while they come."""

import json
import re
from collections.abc import Callable

INPUT = "input"  # the only parameter of a custom tool in the prompt

BEGIN = [r"\{", r"\s*", *f'"{INPUT}"', r"\s*", ":", r"\s*", '"']
WHOLE = re.compile("".join(BEGIN))
BEGUN = re.compile("".join(f"(?:{atom}" for atom in BEGIN) + ")?" * len(BEGIN))  # cut off anywhere
PLAIN = re.compile(r'[^"\\]+')
ESCAPE = re.compile(r"\\(?:u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2}|u[0-9a-fA-F]{4}|[^u])", re.DOTALL)
CUT_OFF = re.compile(r"\\(?:u[0-9a-fA-F]{0,3}|u[dD][89abAB][0-9a-fA-F]{2}(?:\\(?:u[0-9a-fA-F]{0,3})?)?)?")


class InputText:
    """Arguments of another form than `{"input": "…"}` are understood at their end, as well as can be."""

    def __init__(self) -> None:
        self._held = ""  # come, and not yet understood
        self._step: Callable[[], str] = self._begin

    def feed(self, text: str) -> str:
        """The next delta of the input."""
        self._held += text
        return self._step()

    def finish(self) -> str:
        """The rest: nothing more will come."""
        left, self._held = self._held, ""
        match self._step:
            case self._begin | self._wait:
                return unwrapped(left)
            case self._read:
                return left  # half an escape
            case _:
                return ""

    def _begin(self) -> str:
        if found := WHOLE.match(self._held):
            self._held = self._held[found.end() :]
            self._step = self._read
            return self._read()
        if not BEGUN.fullmatch(self._held):
            self._step = self._wait
        return ""

    def _wait(self) -> str:
        return ""

    def _read(self) -> str:
        output, held, at = [], self._held, 0
        while at < len(held) and held[at] != '"' and not CUT_OFF.fullmatch(held, at):
            found = PLAIN.match(held, at) or ESCAPE.match(held, at)
            output.append(_unescaped(found[0]) if found else held[at])
            at = found.end() if found else at + 1
        if held[at : at + 1] == '"':
            self._step = self._skip
        self._held = held[at:]
        return "".join(output)

    def _skip(self) -> str:
        self._held = ""
        return ""


def _unescaped(text: str) -> str:
    if not text.startswith("\\"):
        return text
    try:
        return _whole(json.loads(f'"{text}"'))
    except ValueError:  # no escape of JSON
        return text


def _whole(text: str) -> str:
    """Halves of surrogate pairs are no characters."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def unwrapped(arguments: str) -> str:
    """The input that whole arguments have in them: the one of that name, or the only text."""
    try:
        parsed = json.loads(arguments, strict=False)
    except (ValueError, RecursionError):
        return arguments
    if isinstance(parsed, dict) and parsed:
        parsed = parsed[INPUT] if INPUT in parsed else next(iter(parsed.values())) if len(parsed) == 1 else None
    return _whole(parsed) if isinstance(parsed, str) else arguments


def wrapped(text: str) -> str:
    return json.dumps({INPUT: text}, ensure_ascii=False)
