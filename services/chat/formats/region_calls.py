"""Calls that are understood only as a whole, from where they are opened to where they are closed, as a response
template says. They cannot be forced: what a model writes is read by regular expressions, and by nothing that could be
turned around. An expression that takes long finds nothing, and the text is content."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import regex

from services.chat.formats.argument_schemas import ANY, TEXT, ArgumentSchemas, json_of
from services.chat.formats.base import AnswerFormat, CallRule, Step
from services.chat.formats.json_list import JSON_LIST
from services.chat.parsing.call_writer import CallWriter
from services.chat.parsing.json_text import Called
from services.chat.parsing.scanner import Scanner
from services.engine.stop_strings import first, overlap
from services.errors import UnsupportedParameter

NAME = "response-template"
TIMEOUT_S = 0.5  # of one expression on one call; a harmless one takes microseconds
PLACEHOLDER = re.compile(r"\{(\w+(?:\.\w+)*)\}")
KEY_WITHOUT_QUOTES = re.compile(r"(?<=[{,])(\s*)(\w+)(?=\s*:)")
WHY = (
    "is not supported with this model, whose calls have a form that cannot be enforced: "
    "'%s' has to be auto or none, '%s' true, and no tool '%s'"
)

Schemas = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Region:
    """What a response template says of calls. `closes`: empty where only the end of the answer closes one."""

    opens: "regex.Pattern[str]"
    closes: tuple[str, ...]
    content: str
    arguments: Mapping[str, Any]
    transform: object
    is_list: bool

    def calls(self, text: str, schemas: Schemas) -> list[Called] | None:
        """None: it is no call. `text`: without what closes it."""
        try:
            return list(self._calls(text, schemas))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, TimeoutError):
            return None

    def _calls(self, text: str, schemas: Schemas) -> Iterator[Called]:
        found = self.opens.match(text, timeout=TIMEOUT_S)
        if not found:
            raise ValueError("what opens it is not there")
        captured = {key: value for key, value in found.groupdict().items() if value is not None}
        content = parsed(text[found.end() :], self.content, self.arguments)
        for each in content if self.is_list else [{"content": content}]:
            call = _filled(self.transform, captured | each) if self.transform is not None else each["content"]
            function = call.get("function", call)
            yield self._called(function["name"], function.get("arguments", {}), schemas)

    def _called(self, name: object, arguments: object, schemas: Schemas) -> Called:
        if not isinstance(name, str) or not isinstance(arguments, (dict, str)):
            raise ValueError("it has no name, or no arguments")
        if isinstance(arguments, str):
            return Called(name, arguments)
        known = ArgumentSchemas(schemas.get(name, {}))
        values = {key: self._value(value, known, key) for key, value in arguments.items()}
        return Called(name, json.dumps(values, ensure_ascii=False))

    def _value(self, value: object, known: ArgumentSchemas, key: str) -> object:
        """As the tool's schema has it, where the form writes all values as texts."""
        if self.content == "json" or not isinstance(value, str):
            return value
        types = known.types(known.of(key))
        return value if types in (ANY, TEXT) else json.loads(json_of(value, types))


def parsed(text: str, kind: str, arguments: Mapping[str, Any]) -> Any:
    """A content as one of the kinds that response templates know."""
    match kind:
        case "json":
            return _json(text, arguments)
        case "xml-inline":
            return _tagged(text, arguments)
        case "kv-lines":
            return _lines(text, arguments)
        case _:
            return text.strip() if arguments.get("strip", True) else text


def _json(text: str, arguments: Mapping[str, Any]) -> Any:
    try:
        return json.loads(text, strict=False)
    except ValueError:
        pass
    strings: list[str] = []

    def keep(found: re.Match[str]) -> str:
        strings.append(found[1])
        return f'"\x01{len(strings) - 1}"'

    for begin, end in arguments.get("string_delims", ()):
        text = re.sub(f"{re.escape(begin)}(.*?){re.escape(end)}", keep, text, flags=re.DOTALL)
    if arguments.get("unquoted_keys"):
        text = KEY_WITHOUT_QUOTES.sub(r'\1"\2"', text)
    try:
        return _put_back(json.loads(text, strict=False), strings)
    except ValueError:
        if arguments.get("allow_non_json"):
            return text.strip()
        raise


def _put_back(value: Any, strings: list[str]) -> Any:
    match value:
        case str() if value.startswith("\x01") and strings:
            return strings[int(value[1:])]
        case list():
            return [_put_back(each, strings) for each in value]
        case dict():
            return {_put_back(key, strings): _put_back(each, strings) for key, each in value.items()}
        case _:
            return value


def _tagged(text: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each in regex.finditer(arguments["tag_pattern"], text, flags=regex.DOTALL, timeout=TIMEOUT_S):
        key, value = each["key"], _inner(each.groupdict().get("value", ""), arguments)
        if key in found and arguments.get("merge_duplicates"):
            found[key] = [*(found[key] if isinstance(found[key], list) else [found[key]]), value]
        else:
            found[key] = value
    return found


def _lines(text: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    between = arguments.get("kv_sep", ":")
    lines = [each.partition(between) for each in text.split(arguments.get("line_sep", "\n")) if between in each]
    return {key.strip(): _inner(value.strip(), arguments) for key, _, value in lines}


def _inner(text: str, arguments: Mapping[str, Any]) -> Any:
    parser = arguments.get("value_parser") or {}
    return parsed(text, parser.get("name", "text"), parser.get("args", {"strip": False}))


def _filled(transform: Any, values: Mapping[str, Any]) -> Any:
    match transform:
        case dict():
            return {key: _filled(each, values) for key, each in transform.items()}
        case list():
            return [_filled(each, values) for each in transform]
        case str() if found := PLACEHOLDER.fullmatch(transform):
            value: Any = values
            for key in found[1].split("."):
                value = value[key]
            return value
        case _:
            return transform


@dataclass(frozen=True, slots=True)
class RegionCalls:
    """A format of such calls, as data."""

    marker: str
    region: Region
    name: str = NAME
    between: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    bare: bool = False
    unmarked: str = ""
    answer: AnswerFormat | None = None
    text_end: str = ""

    @property
    def before(self) -> tuple[str, ...]:
        return (self.marker,)

    def detect(self, template: str) -> bool:
        return False

    def parser(self, scanner: Scanner, calls: CallWriter) -> "RegionParser":
        return RegionParser(self.marker, self.region, scanner, calls)

    def write(self, calls: Iterable[tuple[str, str]]) -> str:
        """In words, for templates that do not show calls: there is no way back from the expressions."""
        return JSON_LIST.write(calls)

    def example(self) -> str:
        return JSON_LIST.example()

    def call_id(self, id: str, name: str, place: int) -> str:
        return id

    def call_rules(self, rule: CallRule) -> list[str]:
        raise UnsupportedParameter("tool_choice", WHY, "tool_choice", "parallel_tool_calls", "strict")

    def text_begin(self, name: str) -> str:
        raise UnsupportedParameter("tool_choice", WHY, "tool_choice", "parallel_tool_calls", "strict")

    def text_rules(self, rule: CallRule) -> list[str]:
        raise UnsupportedParameter("tool_choice", WHY, "tool_choice", "parallel_tool_calls", "strict")


class RegionParser:
    def __init__(self, marker: str, region: Region, scanner: Scanner, calls: CallWriter) -> None:
        self._marker = marker
        self._region = region
        self._scanner = scanner
        self._calls = calls
        self._taken = ""  # what is content if no call comes
        self._num_searched = 0  # characters of the text
        self._step: Callable[[], Step] = self._read

    def open(self, marker: str) -> None:
        self._taken, self._num_searched = marker, 0
        self._step = self._read

    def step(self) -> Step:
        return self._step()

    def rejected(self) -> str:
        taken, self._taken = self._taken, ""
        return taken

    def _read(self) -> Step:
        """Behind what opens a call."""
        text, closes = self._scanner.text, self._region.closes
        longest = max(map(len, closes), default=1)
        found = first(text[(start := max(0, self._num_searched - longest + 1)) :], closes)
        self._num_searched = len(text)
        if found is None and not self._scanner.is_over:
            return Step.WAIT
        if found:
            size, end = start + found[0], len(found[1])
        else:
            end = overlap(text, closes)
            size = len(text) - end
        calls = self._region.calls(self._taken + text[:size], self._calls.parameters)
        if not calls or not {each.name for each in calls} <= self._calls.names:
            return Step.NO_CALL
        self._scanner.take(size + end)
        self._taken = ""
        for each in calls:
            self._calls.whole(each.name, each.arguments)
        self._step = self._behind
        return Step.GO_ON

    def _behind(self) -> Step:
        scanner = self._scanner
        if not scanner.skip_blank():
            return Step.WAIT
        if scanner.text.startswith(self._marker):
            self.open(scanner.take(len(self._marker)))
            return Step.GO_ON
        return Step.WAIT if scanner.may_become(self._marker) else Step.NO_CALL
