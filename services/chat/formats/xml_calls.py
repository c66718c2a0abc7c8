"""Calls whose arguments are written one by one between tags: what such formats share.

Strings stand there as they are, other values as JSON; which is meant the tool's schema says, or the tag itself.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cached_property

from services.chat.formats import xml_grammar
from services.chat.formats.argument_schemas import type_of
from services.chat.formats.base import AnswerFormat, CallRule
from services.chat.formats.json_calls import NAME, NAME_HERE, SPACE, Header
from services.chat.formats.xml_parser import XmlCallParser, XmlTags
from services.chat.parsing.call_writer import CallWriter
from services.chat.parsing.input_text import INPUT
from services.chat.parsing.scanner import Scanner

KEY_HERE = "KEY"  # stands for an argument's name
KIND_HERE = "KIND"  # and for whether it is a string
ATOMS = {NAME_HERE: NAME, KEY_HERE: r"(?P<key>[^<>\n]{1,256})", KIND_HERE: "(?P<kind>[a-z]{1,5})"}
PIECES = re.compile(rf"{NAME_HERE}|{KEY_HERE}|{KIND_HERE}|\s+|.")
TAG = re.compile(r"<[^<>]+>")


@dataclass(frozen=True)
class XmlCalls:
    """A format of such calls, as data. `call`: what stands around the arguments of one, with the tool's name in the
    place of the word; `argument`: what stands around a value. Line ends next to a value are no part of it."""

    name: str
    marker: str
    before: tuple[str, ...]
    between: tuple[str, ...]
    call: tuple[str, str]
    argument: tuple[str, str]
    after: tuple[str, ...] = ()
    text_end: str = ""
    bare: bool = False
    unmarked: str = ""
    answer: AnswerFormat | None = None
    detects: Callable[[str], bool] = field(default=lambda template: False)

    def detect(self, template: str) -> bool:
        return self.detects(template.replace("\\", ""))

    @cached_property
    def tags(self) -> XmlTags:
        begin, end = self.argument
        close, *ends = TAG.findall(self.call[1])
        return XmlTags(
            marker=self.marker,
            header=_header(self.call[0]),
            argument=_header(begin.rstrip("\n")),
            argument_begin=begin.partition(KEY_HERE)[0],
            lead=begin[len(begin.rstrip("\n")) :],
            tail=end[: len(end) - len(end.lstrip("\n"))],
            argument_end=end.strip("\n"),
            close=close,
            ends=(*ends, *(each for part in self.after for each in TAG.findall(part))),
            text_end="" if self.text_end.startswith(end.strip("\n")) else self.text_end,
        )

    def parser(self, scanner: Scanner, calls: CallWriter) -> XmlCallParser:
        return XmlCallParser(self.tags, scanner, calls)

    def write(self, calls: Iterable[tuple[str, str]]) -> str:
        texts = [self._written(name, arguments) for name, arguments in calls]
        return "".join(self.before) + "".join(self.between).join(texts) + "".join(self.after)

    def example(self) -> str:
        return self.write([(NAME_HERE, json.dumps({"PARAMETER": "VALUE"}))])

    def call_id(self, id: str, name: str, place: int) -> str:
        return id

    def call_rules(self, rule: CallRule) -> list[str]:
        return xml_grammar.call_rules(self, rule)

    def text_begin(self, name: str) -> str:
        return self.begin_call(name) + self.begin_argument(INPUT, is_text=True)

    def text_rules(self, rule: CallRule) -> list[str]:
        return xml_grammar.text_rules(self, rule)

    def begin_call(self, name: str) -> str:
        return self.call[0].replace(NAME_HERE, name)

    def begin_argument(self, key: str, *, is_text: bool) -> str:
        return self.argument[0].replace(KIND_HERE, "true" if is_text else "false").replace(KEY_HERE, key)

    def _written(self, name: str, arguments: str) -> str:
        try:
            values = json.loads(arguments)
        except (ValueError, RecursionError):
            values = None
        parts = "".join(map(self._argument, *zip(*values.items(), strict=True))) if values else ""
        return self.begin_call(name) + (parts if isinstance(values, dict) else arguments) + self.call[1]

    def _argument(self, key: str, value: object) -> str:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        return self.begin_argument(key, is_text=type_of(value) == "string") + text + self.argument[1]


def _header(literal: str) -> Header:
    """Where it ends with a name, a tag must follow: a text that begins with the name is no call."""
    pieces = PIECES.findall(literal.strip("\n"))
    atoms = [SPACE if each.isspace() else ATOMS.get(each) or re.escape(each) for each in pieces]
    return Header.of(SPACE, *atoms, SPACE, wrapped=False, before="<" if pieces[-1] == NAME_HERE else "")
