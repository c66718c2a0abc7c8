"""Calls that are written as in Python, `f(a=1, b="x")`: what such formats share."""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from services.chat.formats import python_grammar
from services.chat.formats.base import AnswerFormat, CallRule
from services.chat.formats.json_calls import NAME, SPACE, Header
from services.chat.formats.lark_text import text_rules
from services.chat.formats.literal_parser import LiteralCallParser, LiteralSyntax
from services.chat.formats.literals import Quote
from services.chat.formats.python_grammar import IDENTIFIER, PYTHON_WORDS, python_of
from services.chat.parsing.call_writer import CallWriter
from services.chat.parsing.input_text import INPUT
from services.chat.parsing.scanner import Scanner

FIRST = Header.of(r"\[", SPACE, NAME, SPACE, r"\(", wrapped=False, before="")  # where no marker has come
NEXT = Header.of(r"\[?", SPACE, NAME, SPACE, r"\(", wrapped=False, before="")
PREFIXES = ("", *"rRbBuUfF", "br", "Br", "bR", "BR", "rb", "rB", "Rb", "RB")
MARKS = ('"""', "'''", '"', "'")
QUOTES = [Quote(prefix + mark, mark, is_raw="r" in prefix.lower()) for prefix in PREFIXES for mark in MARKS]
TEXT_BEGIN, TEXT_END = f'({INPUT}=r"""', '""")'  # the input of a custom tool, as it is


@dataclass(frozen=True, slots=True)
class PythonCalls:
    """A format of such calls, as data. `ends`: what may come after them, too. `words`: what JSON's `true`, `false` and
    `null` are written as."""

    name: str
    before: tuple[str, ...]
    between: tuple[str, ...]
    after: tuple[str, ...]
    ends: tuple[str, ...] = ()
    marker: str = ""
    bare: bool = False
    unmarked: str = ""
    words: dict[str, str] = field(default_factory=lambda: PYTHON_WORDS)
    answer: AnswerFormat | None = None
    detects: Callable[[str], bool] = field(default=lambda template: False)
    text_end: str = TEXT_END

    def detect(self, template: str) -> bool:
        return self.detects(template)

    def parser(self, scanner: Scanner, calls: CallWriter) -> LiteralCallParser:
        ends = (*self.after, *self.ends)
        return LiteralCallParser(LiteralSyntax(FIRST, NEXT, QUOTES, "=", ")", self.marker, ends), scanner, calls)

    def write(self, calls: Iterable[tuple[str, str]]) -> str:
        texts = [f"{name}({self._members(arguments)})" for name, arguments in calls]
        return "".join(self.before) + "".join(self.between).join(texts) + "".join(self.after)

    def example(self) -> str:
        return self.write([("NAME", "")]).replace("()", "(PARAMETER=VALUE)")

    def call_id(self, id: str, name: str, place: int) -> str:
        return id

    def call_rules(self, rule: CallRule) -> list[str]:
        return python_grammar.call_rules(rule, self.words)

    def text_begin(self, name: str) -> str:
        return name + TEXT_BEGIN

    def text_rules(self, rule: CallRule) -> list[str]:
        assert rule.text
        text = f"{rule.name}-text"
        begin = json.dumps(self.text_begin(rule.function.name))
        return [f"{rule.name}: {begin} {text}", *text_rules(text, rule.text, rule.param)]

    def _members(self, arguments: str) -> str:
        """What is no object is shown as it was said."""
        try:
            read = json.loads(arguments)
        except (ValueError, RecursionError):
            return arguments
        if not isinstance(read, dict):
            return arguments
        return ", ".join(self._member(key, value) for key, value in read.items())

    def _member(self, key: str, value: object) -> str:
        text = python_of(value, self.words)
        return f"{key}={text}" if IDENTIFIER.fullmatch(key) else f"**{{{json.dumps(key, ensure_ascii=False)}: {text}}}"
