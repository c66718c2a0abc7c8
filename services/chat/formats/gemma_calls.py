"""Gemma 4 and FunctionGemma: `call:f{city:<|"|>Paris<|"|>,days:3}` between marks, with another mark around strings."""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from services.chat.formats import gemma_grammar
from services.chat.formats.base import AnswerFormat, CallRule
from services.chat.formats.gemma_grammar import key_of, written
from services.chat.formats.json_calls import NAME, SPACE, Header
from services.chat.formats.lark_text import marker, text_rules
from services.chat.formats.literal_parser import LiteralCallParser, LiteralSyntax
from services.chat.formats.literals import Quote
from services.chat.parsing.call_writer import CallWriter
from services.chat.parsing.input_text import INPUT
from services.chat.parsing.scanner import Scanner

HEADER = Header.of(SPACE, *"call", ":?", SPACE, NAME, SPACE, r"\{", wrapped=False, before="")


@dataclass(frozen=True, slots=True)
class GemmaCalls:
    """A format of such calls, as data. `stop`: what a model writes behind them, where the results are to come."""

    name: str
    begin: str
    end: str
    quote: str  # on both sides of a string
    stop: str
    bare: bool = False
    unmarked: str = ""
    answer: AnswerFormat | None = None
    detects: Callable[[str], bool] = field(default=lambda template: False)

    @property
    def marker(self) -> str:
        return self.begin

    @property
    def before(self) -> tuple[str, ...]:
        return (self.begin,)

    @property
    def between(self) -> tuple[str, ...]:
        return ("}", self.end, self.begin)

    @property
    def after(self) -> tuple[str, ...]:
        return ("}", self.end)

    @property
    def text_end(self) -> str:
        return self.quote

    def detect(self, template: str) -> bool:
        return self.begin in template

    def parser(self, scanner: Scanner, calls: CallWriter) -> LiteralCallParser:
        quotes = (Quote(self.quote, self.quote, has_escapes=False), Quote('"', '"'))
        syntax = LiteralSyntax(HEADER, HEADER, quotes, ":", "}", self.marker, (self.end, "}"), self.stop)
        return LiteralCallParser(syntax, scanner, calls)

    def write(self, calls: Iterable[tuple[str, str]]) -> str:
        texts = [f"call:{name}{{{''.join(self._members(arguments))}" for name, arguments in calls]
        return "".join(self.before) + "".join(self.between).join(texts) + "".join(self.after)

    def example(self) -> str:
        return self.write([("NAME", json.dumps({"PARAMETER": "VALUE"}))])

    def call_id(self, id: str, name: str, place: int) -> str:
        return id

    def call_rules(self, rule: CallRule) -> list[str]:
        return gemma_grammar.call_rules(rule, self.quote)

    def text_begin(self, name: str) -> str:
        return f"call:{name}{{{INPUT}:{self.quote}"

    def text_rules(self, rule: CallRule) -> list[str]:
        assert rule.text
        text = f"{rule.name}-text"
        begin = marker(self.text_begin(rule.function.name))
        return [f"{rule.name}: {begin} {text}", *text_rules(text, rule.text, rule.param)]

    def _members(self, arguments: str) -> Iterator[str]:
        """What is no object is shown as it was said."""
        try:
            read = json.loads(arguments)
        except (ValueError, RecursionError):
            read = None
        if not isinstance(read, dict):
            yield arguments
            return
        yield ",".join(f"{key_of(key, self.quote)}:{written(value, self.quote)}" for key, value in read.items())
