"""The streaming parser of calls whose arguments are written as literals of another notation than JSON."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from services.chat.formats.base import Step
from services.chat.formats.call_gap import CallGap
from services.chat.formats.json_calls import Header
from services.chat.formats.literals import LiteralReader, Quote
from services.chat.parsing.call_writer import CallWriter
from services.chat.parsing.scanner import Scanner

BLANK = re.compile(r"[\s,\]]")  # around calls


@dataclass(frozen=True, slots=True)
class LiteralSyntax:
    first: Header  # of a call that begins the answer without a marker
    next: Header
    quotes: Sequence[Quote]
    assign: str  # between an argument's name and its value
    close: str  # what ends the arguments
    marker: str
    ends: tuple[str, ...]  # what may come after a call
    stop: str = ""  # what ends the answer there


class LiteralCallParser:
    def __init__(self, syntax: LiteralSyntax, scanner: Scanner, calls: CallWriter) -> None:
        self._syntax = syntax
        self._scanner = scanner
        self._calls = calls
        self._gap = CallGap(scanner, syntax.marker, syntax.ends, BLANK)
        self._header = syntax.first
        self._arguments: LiteralReader | None = None  # of the call, while they come

    def open(self, marker: str) -> None:
        self._gap.open(marker)
        self._header = self._syntax.next if marker else self._syntax.first
        self._arguments = None

    def step(self) -> Step:
        return self._read(self._arguments) if self._arguments else self._call()

    def rejected(self) -> str:
        return self._gap.rejected()

    def _call(self) -> Step:
        """Where a call begins, or after one."""
        if self._calls.num_calls and (stop := self._syntax.stop):
            if self._scanner.text.startswith(stop):
                return Step.OVER
            if self._scanner.may_become(stop):
                return Step.WAIT
        if (passed := self._gap.step()) is not None:
            return passed
        scanner = self._scanner
        if (found := self._header.whole.match(scanner.text)) and found["name"] in self._calls.names:
            return self._begin(found)
        is_begun = not scanner.is_over and self._header.begun.fullmatch(scanner.text)
        return Step.WAIT if is_begun else Step.NO_CALL

    def _begin(self, found: re.Match[str]) -> Step:
        self._scanner.take(found.end())
        self._gap.close()
        self._header = self._syntax.next
        self._calls.begin(found["name"])
        names = list(self._calls.parameters.get(found["name"], {}).get("properties", ()))
        syntax = self._syntax
        self._arguments = LiteralReader(
            self._scanner, self._calls.arguments, syntax.quotes, syntax.assign, syntax.close, names
        )
        return Step.GO_ON

    def _read(self, arguments: LiteralReader) -> Step:
        if not arguments.read():
            return Step.WAIT
        self._calls.end()
        self._arguments = None
        return Step.GO_ON
