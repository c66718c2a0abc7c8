"""Calls whose arguments are a JSON object: the parser and the grammar that such formats share."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from services.chat.formats.base import AnswerFormat, CallRule, Step
from services.chat.formats.call_gap import CallGap
from services.chat.formats.lark_text import lark, schema_of, text_rules
from services.chat.parsing.call_writer import CallWriter
from services.chat.parsing.json_text import Called, JsonEnd, call_in
from services.chat.parsing.scanner import Scanner
from services.engine.stop_strings import overlap

NAME = "(?P<name>[a-zA-Z0-9_.-]{1,128})"
SPACE = r"\s*"
ARGUMENTS = "ARGUMENTS"  # stands for the arguments of a call, as the others for the tool's name
NAME_HERE = "NAME"
PLACE = "PLACE"  # and the call's place among all
BETWEEN = re.compile(r"[\s\[\],;]")  # around calls


@dataclass(frozen=True, slots=True)
class Header:
    """What stands before a call's arguments."""

    whole: re.Pattern[str]
    begun: re.Pattern[str]
    wrapped: bool  # in an object, which goes on after the arguments

    @classmethod
    def of(cls, *atoms: str, wrapped: bool, before: str = r"\{") -> "Header":
        """`atoms` are regular expressions which, cut off anywhere, still match: letters and repetitions."""
        begun = "".join(f"(?:{atom}" for atom in atoms) + ")?" * len(atoms)
        return cls(re.compile("".join(atoms) + f"(?={before})"), re.compile(begun), wrapped)


def letters(text: str) -> list[str]:
    """As atoms of a header."""
    return [re.escape(each) for each in text]


def object_with(arguments: str, name: str = "name") -> Header:
    """`{"name": "f", "arguments": ` and the like."""
    named = _named(name)
    return Header.of(*named, SPACE, ",", SPACE, *letters(f'"{arguments}"'), SPACE, ":", SPACE, wrapped=True)


def _named(name: str) -> list[str]:
    return [r"\{", SPACE, *letters(f'"{name}"'), SPACE, ":", SPACE, '"', NAME, '"']


def text_header(name: str) -> Header:
    return Header.of(*_named(name), SPACE, r"\}", "\n", wrapped=False, before="")


TEXT = '{"name": "NAME"}\n'  # and then the input of a custom tool, which is no JSON
TEXT_HEADER = text_header("name")


@dataclass(frozen=True, slots=True)
class JsonCalls:
    """A format of such calls, as data. `call`: the parts of one, with the name and the arguments in the places of the
    two words. `detects` is given the template without backslashes, as strings in it may escape their quotes."""

    name: str
    headers: tuple[Header, ...]
    call: tuple[str, ...]
    between: tuple[str, ...] = ()
    before: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    marker: str = ""
    end: str = ""  # after each call
    closing: tuple[str, ...] = ()  # what may stand between arguments and that
    text: tuple[str, ...] = (TEXT,)  # before the input of a custom tool with a grammar
    text_header: Header = TEXT_HEADER
    bare: bool = False
    unmarked: str = ""
    answer: AnswerFormat | None = None
    detects: Callable[[str], bool] = field(default=lambda template: False)
    ids: Callable[[str, str, int], str] = field(default=lambda id, name, place: id)
    reads: Callable[[str], Called | None] = call_in  # a whole object that no header has begun

    @property
    def text_end(self) -> str:
        return self.end or (self.marker if self.marker in self.between else "")

    def detect(self, template: str) -> bool:
        return self.detects(template.replace("\\", ""))

    def parser(self, scanner: Scanner, calls: CallWriter) -> "JsonCallParser":
        return JsonCallParser(self, scanner, calls)

    def write(self, calls: Iterable[tuple[str, str]]) -> str:
        texts = [
            "".join(_filled(part, name, arguments, place) for part in self.call)
            for place, (name, arguments) in enumerate(calls)
        ]
        return "".join(self.before) + "".join(self.between).join(texts) + "".join(self.after)

    def example(self) -> str:
        return self.write([(NAME_HERE, '{"PARAMETER": VALUE}')])

    def call_id(self, id: str, name: str, place: int) -> str:
        return self.ids(id, name, place)

    def call_rules(self, rule: CallRule) -> list[str]:
        arguments = f"{rule.name}-arguments"
        call = _lark(self.call, rule.function.name, arguments)
        return [f"{rule.name}: {call}", f"{arguments}: %json {schema_of(rule.function)}"]

    def text_begin(self, name: str) -> str:
        return "".join(_filled(part, name) for part in self._text)

    @property
    def _text(self) -> tuple[str, ...]:
        """A model that has begun as it does for any call is not to be led to another tool by that."""
        first, *rest = self.text
        return (self.call[0][: len(self.call[0]) - len(self.call[0].lstrip())] + first, *rest)

    def text_rules(self, rule: CallRule) -> list[str]:
        assert rule.text
        text = f"{rule.name}-text"
        begin = _lark(self._text, rule.function.name)
        return [f"{rule.name}: {begin} {text}", *text_rules(text, rule.text, rule.param)]


def _lark(parts: Iterable[str], name: str, arguments: str = "") -> str:
    """`arguments`: the name of their rule."""
    own = {ARGUMENTS: arguments, PLACE: "/[0-9]{1,4}/"}
    return " ".join(own.get(part) or lark([_filled(part, name)]) for part in parts)


def _filled(part: str, name: str, arguments: str = "", place: int = 0) -> str:
    if part == ARGUMENTS:
        return arguments
    return str(place) if part == PLACE else part.replace(NAME_HERE, name)


class JsonCallParser:
    def __init__(self, format: JsonCalls, scanner: Scanner, calls: CallWriter) -> None:
        self._format = format
        self._scanner = scanner
        self._calls = calls
        self._gap = CallGap(scanner, format.marker, (*format.closing, format.end, *format.after), BETWEEN)
        self._object = ""  # perhaps a call, in an unusual order
        self._is_wrapped = False  # the call, in an object
        self._json = JsonEnd()
        self._step: Callable[[], Step] = self._call

    def open(self, marker: str) -> None:
        self._gap.open(marker)
        self._step = self._call

    def step(self) -> Step:
        return self._step()

    def rejected(self) -> str:
        text = self._gap.rejected() + self._object
        self._object = ""
        return text

    def _go(self, step: Callable[[], Step]) -> Step:
        self._step = step
        return Step.GO_ON

    # --- steps ---

    def _call(self) -> Step:
        """Where a call begins, or after one."""
        scanner, text = self._scanner, self._scanner.text
        if (passed := self._gap.step()) is not None:
            return passed
        for header in self._format.headers:
            if (found := header.whole.match(text)) and found["name"] in self._calls.names:
                return self._begin_arguments(header, found)
        if self._may_be(*self._format.headers):
            return Step.WAIT
        text_header = self._format.text_header
        if (found := text_header.whole.match(text)) and self._calls.is_custom(found["name"]):
            scanner.take(found.end())
            self._gap.close()
            self._calls.begin_text(found["name"])
            return self._go(self._text)
        if self._calls.has_customs and self._may_be(text_header):
            return Step.WAIT
        self._json = JsonEnd()
        return self._go(self._understand) if text.startswith("{") else Step.NO_CALL

    def _begin_arguments(self, header: Header, found: re.Match[str]) -> Step:
        self._scanner.take(found.end())
        self._calls.begin(found["name"])
        self._gap.close()
        self._json, self._is_wrapped = JsonEnd(), header.wrapped
        return self._go(self._arguments)

    def _may_be(self, *headers: Header) -> bool:
        return not self._scanner.is_over and any(each.begun.fullmatch(self._scanner.text) for each in headers)

    def _text(self) -> Step:
        """The input of a custom tool as it is."""
        scanner, end = self._scanner, self._format.text_end
        place = scanner.text.find(end) if end else -1
        if place < 0:
            held = overlap(scanner.text, [end]) if end and not scanner.is_over else 0
            self._calls.arguments(scanner.take(len(scanner.text) - held))
            return Step.WAIT
        self._calls.arguments(scanner.take(place))
        return self._go(self._call)

    def _arguments(self) -> Step:
        """They are passed on as they were written."""
        scanner = self._scanner
        end = self._json.feed(scanner.text)
        self._calls.arguments(scanner.take(len(scanner.text) if end is None else end))
        if end is None:
            return Step.WAIT
        self._calls.end()
        return self._go(self._close if self._is_wrapped else self._call)

    def _close(self) -> Step:
        """What is left of the object around the arguments."""
        if not self._scanner.skip_blank():
            return Step.WAIT
        self._json = JsonEnd(depth=1)
        return self._go(self._skip_rest if self._scanner.text[0] in ",}" else self._call)

    def _skip_rest(self) -> Step:
        end = self._json.feed(self._scanner.text)
        self._scanner.take(len(self._scanner.text) if end is None else end)
        return Step.WAIT if end is None else self._go(self._call)

    def _understand(self) -> Step:
        """A whole object, of which only then can be said whether it is a call."""
        scanner, marker = self._scanner, self._format.marker
        end = self._json.feed(scanner.text)
        self._object += scanner.take(len(scanner.text) if end is None else end)
        if marker and marker in self._object:  # the next one begins; waiting for the end would read all of it for each
            return Step.NO_CALL
        if end is None and not scanner.is_over:
            return Step.WAIT
        called = self._format.reads(self._object)
        if called is None or called.name not in self._calls.names:
            return Step.NO_CALL
        self._object = ""
        self._gap.close()
        self._calls.whole(called.name, called.arguments)
        return self._go(self._call)
