"""The streaming parser of calls whose arguments are written one by one between tags."""

import json
import re
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass

from services.chat.formats.argument_schemas import ANY, TEXT, ArgumentSchemas, json_of
from services.chat.formats.base import Step
from services.chat.formats.call_gap import CallGap
from services.chat.formats.json_calls import Header
from services.chat.parsing.call_writer import CallWriter
from services.chat.parsing.json_text import JsonEnd
from services.chat.parsing.scanner import Scanner
from services.engine.stop_strings import overlap

BLANK = re.compile(r"\s")


@dataclass(frozen=True, slots=True)
class XmlTags:
    marker: str  # before a call, or before several
    header: Header  # of a call
    argument: Header
    argument_begin: str  # the beginning of it that is the same for all
    lead: str  # a line end that may stand before a value
    tail: str  # and behind it
    argument_end: str
    close: str  # what ends a call
    ends: tuple[str, ...]  # what may come between that and the next one
    text_end: str  # what ends the input of a custom tool with a grammar

    @property
    def followers(self) -> tuple[str, ...]:
        """What comes after an argument."""
        return (self.argument_begin, self.close, *self.ends)


class XmlCallParser:
    """A tag in a value does not end it, unless what comes after an argument follows; nor inside an object or a list,
    where the value is to be JSON and the object comes to an end."""

    def __init__(self, tags: XmlTags, scanner: Scanner, calls: CallWriter) -> None:
        self._tags = tags
        self._scanner = scanner
        self._calls = calls
        self._gap = CallGap(scanner, tags.marker, (tags.close, *tags.ends), BLANK)
        self._step: Callable[[], Step] = self._call
        self._schemas = ArgumentSchemas({})
        self._is_custom = False
        self._num_arguments = 0
        self._types = ANY  # of the value
        self._value = ""  # of another type than a string, up to now
        self._json: JsonEnd | None = None  # in it, where it cannot be a string
        self._first_end: int | None = None  # of the value, if the object in it has none

    def open(self, marker: str) -> None:
        self._gap.open(marker)
        self._step = self._call

    def step(self) -> Step:
        return self._step()

    def rejected(self) -> str:
        return self._gap.rejected()

    def _go(self, step: Callable[[], Step]) -> Step:
        self._step = step
        return Step.GO_ON

    # --- steps ---

    def _call(self) -> Step:
        """Where a call begins, or after one."""
        if (passed := self._gap.step()) is not None:
            return passed
        scanner, header = self._scanner, self._tags.header
        if (found := header.whole.match(scanner.text)) and found["name"] in self._calls.names:
            return self._begin_call(found)
        is_begun = not scanner.is_over and header.begun.fullmatch(scanner.text)
        return Step.WAIT if is_begun else Step.NO_CALL

    def _begin_call(self, found: re.Match[str]) -> Step:
        name = found["name"]
        self._scanner.take(found.end())
        self._gap.close()
        self._calls.begin(name)
        self._schemas = ArgumentSchemas(self._calls.parameters.get(name, {}))
        self._is_custom = self._calls.is_custom(name)
        self._num_arguments = 0
        return self._go(self._argument)

    def _argument(self) -> Step:
        """Where an argument begins, or the call ends."""
        scanner, tags = self._scanner, self._tags
        if not scanner.skip_blank():
            return Step.WAIT
        if found := tags.argument.whole.match(scanner.text):
            return self._begin_value(found)
        if scanner.text.startswith(tags.close):
            scanner.take(len(tags.close))
        elif self._may_be_argument():
            if scanner.is_over:  # which was cut
                scanner.take(len(scanner.text))
            return Step.WAIT
        elif scanner.may_become(tags.close):
            return Step.WAIT
        self._calls.arguments("}" if self._num_arguments else "{}")
        self._calls.end()
        return self._go(self._call)

    def _may_be_argument(self) -> bool:
        text = self._scanner.text
        return self._tags.argument_begin.startswith(text) or bool(self._tags.argument.begun.fullmatch(text))

    def _begin_value(self, found: re.Match[str]) -> Step:
        groups = found.groupdict()
        self._scanner.take(found.end() - len(found[0]) + len(found[0].rstrip()))
        self._types = self._types_of(groups["key"], groups.get("kind"))
        key = json.dumps(groups["key"], ensure_ascii=False)
        quote = '"' if self._types == TEXT else ""
        self._calls.arguments(f"{', ' if self._num_arguments else '{'}{key}: {quote}")
        self._num_arguments += 1
        self._value = ""
        self._json, self._first_end = None if "string" in self._types else JsonEnd(), None
        return self._go(self._skip_lead)

    def _types_of(self, key: str, kind: str | None) -> frozenset[str]:
        if kind is None:
            return self._schemas.types(self._schemas.of(key))
        return TEXT if kind == "true" else ANY - TEXT

    def _skip_lead(self) -> Step:
        scanner, lead = self._scanner, self._tags.lead
        if lead and scanner.may_become(lead) and not scanner.text.startswith(lead):
            return Step.WAIT
        if lead and scanner.text.startswith(lead):
            scanner.take(len(lead))
        return self._go(self._read_value)

    def _read_value(self) -> Step:
        scanner, tags = self._scanner, self._tags
        size, ended_by = self._value_end()
        value = scanner.text[:size]
        if ended_by == tags.argument_end and self._is_inside_object(value):
            if self._first_end is None:
                self._first_end = len(self._value) + len(value.removesuffix(tags.tail))
            self._add(scanner.take(size + len(ended_by)))
            return Step.GO_ON
        if not ended_by and scanner.is_over and self._first_end is not None:
            return self._end_first()
        if ended_by == tags.argument_end:
            scanner.take(size + len(ended_by))
            value = value.removesuffix(tags.tail)
        elif ended_by or scanner.is_over:
            scanner.take(size)
        else:
            value = value.removesuffix(tags.tail)  # which may be no part of it
            scanner.take(len(value))
        self._add(value)
        if not ended_by and not scanner.is_over:
            return Step.WAIT
        self._end_value(is_whole=ended_by is not None)
        return self._go(self._argument) if ended_by else Step.WAIT

    def _is_inside_object(self, value: str) -> bool:
        if self._json is None:
            return False
        json_end = copy(self._json)
        json_end.feed(value)
        return json_end.is_open

    def _end_first(self) -> Step:
        """The object did not come to an end: nothing is known of what stands in it."""
        self._scanner.put_back(self._value[self._first_end :])
        self._value = self._value[: self._first_end]
        self._json, self._first_end = None, None
        return Step.GO_ON

    def _value_end(self) -> tuple[int, str | None]:
        """How many characters are the value's for certain; and what ends it there, if that has come."""
        scanner, tags = self._scanner, self._tags
        text_end = scanner.text.find(tags.text_end) if self._is_custom and tags.text_end else -1
        text = scanner.text if text_end < 0 else scanner.text[:text_end]
        at = 0
        while (place := text.find(tags.argument_end, at)) >= 0:
            at = place + len(tags.argument_end)
            behind = scanner.text[at:].lstrip()
            if behind.startswith(tags.followers) or (scanner.is_over and not behind):
                return place, tags.argument_end
            if any(scanner.may_become(each, behind) for each in tags.followers):
                return place, None
        if text_end >= 0:
            return text_end, tags.text_end
        ends = [tags.argument_end, *([tags.text_end] if self._is_custom and tags.text_end else [])]
        return len(text) - (0 if scanner.is_over else overlap(text, ends)), None

    def _add(self, value: str) -> None:
        if self._types == TEXT:
            self._calls.arguments(json.dumps(value, ensure_ascii=False)[1:-1])
            return
        self._value += value
        if self._json:
            self._json.feed(value)

    def _end_value(self, *, is_whole: bool) -> None:
        """Where the answer ended in it, it stays as it came."""
        if self._types != TEXT:
            is_value = is_whole or "string" in self._types
            self._calls.arguments(json_of(self._value, self._types) if is_value else self._value)
        elif is_whole:
            self._calls.arguments('"')
