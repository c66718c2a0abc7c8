"""The messages of a harmony answer as events, while they come: headers, thoughts, content and calls."""

import re
from collections.abc import Callable

from services.chat.events import Reasoning, Text
from services.chat.formats.base import OutputFormat, Step
from services.chat.parsing.call_writer import CallWriter
from services.chat.parsing.json_text import JsonEnd
from services.chat.parsing.scanner import ParsedEvent, Scanner
from services.engine.stop_strings import first, overlap

CHANNEL, CONSTRAIN, MESSAGE = "<|channel|>", "<|constrain|>", "<|message|>"
START, END, CALL, RETURN = "<|start|>", "<|end|>", "<|call|>", "<|return|>"
ENDS = (END, CALL, RETURN, START, CHANNEL)  # of a message; the last two where a model has left out its end
BEGINS = (CHANNEL, START, MESSAGE, "to=")  # of a header
MAX_HEADER = 256  # characters
CHANNEL_NAME = re.compile(re.escape(CHANNEL) + r"\s*(\w+)")
RECIPIENT = re.compile(r"\bto=([^\s<]+)")
AUDIENCE = ("assistant", "user", "all")  # recipients that are no tools
NAMESPACE = "functions."
BETWEEN = "\n\n"  # messages of one kind


class MessageParser:
    """A message to a tool that was not offered is content, with its header. Headers that were cut off are dropped."""

    def __init__(self, format: OutputFormat, index: int = 0) -> None:
        self._format = format
        self.stopped_by: str | None = None
        self.is_over = False  # nothing follows a call
        self._stops: tuple[str, ...] = ()
        self._scanner = Scanner(index)
        self._calls = CallWriter(self._scanner, format.names, format.callees, format.parameters, format.answer_id)
        self._tools = format.tools.parser(self._scanner, self._calls) if format.tools else None
        self._kind: type[Text | Reasoning] = Text  # of the message
        self._had: set[type[Text | Reasoning]] = set()  # of those before
        self._is_new = True  # nothing of the message has come out yet
        self._step: Callable[[], bool] = self._body if format.in_content else self._header

    @property
    def num_calls(self) -> int:
        return self._calls.num_calls

    def feed(self, text: str, *, may_stop: bool = True) -> list[ParsedEvent]:
        self._scanner.text += text
        self._stops = self._format.stop if may_stop else ()
        return self._run()

    def finish(self) -> list[ParsedEvent]:
        self._scanner.is_over = True
        events = self._run()
        self._calls.end()
        return events + self._scanner.take_events()

    def _run(self) -> list[ParsedEvent]:
        while not self.is_over and self._step():
            pass
        return self._scanner.take_events()

    def _go(self, step: Callable[[], bool]) -> bool:
        self._step = step
        return True

    # --- steps ---

    def _header(self) -> bool:
        scanner = self._scanner
        if not _may_be_header(scanner.text):
            return self._open(Text)
        place = scanner.text.find(MESSAGE)
        if 0 <= place <= MAX_HEADER:
            return self._addressed(scanner.take(place + len(MESSAGE)))
        if len(scanner.text) > MAX_HEADER or (scanner.is_over and scanner.text.strip() and not _is_cut(scanner.text)):
            self._open(Text)
            scanner.emit_text(Text, 1)  # else a mark that it begins with would be found again
            return True
        return False

    def _addressed(self, header: str) -> bool:
        to = RECIPIENT.search(header)
        if to and to[1] not in AUDIENCE:
            return self._call_or_content(header)
        channel = CHANNEL_NAME.search(header)
        return self._open(Reasoning if channel and channel[1] == "analysis" else Text)

    def _open(self, kind: type[Text | Reasoning]) -> bool:
        self._kind, self._is_new = kind, True
        return self._go(self._body)

    def _call_or_content(self, header: str) -> bool:
        if self._tools:
            self._tools.open(header)
            return self._go(self._call)
        return self._take_back(header)

    def _call(self) -> bool:
        assert self._tools
        step = self._tools.step()
        return step is Step.GO_ON or (step is Step.NO_CALL and self._take_back(self._tools.rejected()))

    def _take_back(self, header: str) -> bool:
        """The call is over, or was none: its header is then content."""
        if not header:
            return self._end()
        self._scanner.put_back(header)
        self._open(Text)
        self._emit(len(header))
        return True

    def _body(self) -> bool:
        scanner, is_text = self._scanner, self._kind is Text
        stops = self._stops if is_text else ()
        found = first(scanner.text, (*ENDS, *stops))
        if found is None:
            held = 0 if scanner.is_over else overlap(scanner.text, (*ENDS, *stops))
            self._emit(len(scanner.text) - held)
            return False
        start, string = found
        if string in stops:
            self.stopped_by, self.is_over = string, True
            self._emit(start + (len(string) if self._format.include_stop else 0))
            return False
        self._emit(start)
        return self._end()

    def _end(self) -> bool:
        """Where a message has come to its end: the mark, if it is not the next one's header, is taken."""
        mark = next((each for each in (END, CALL, RETURN) if self._scanner.text.startswith(each)), "")
        self._scanner.take(len(mark))
        self.is_over = mark in (CALL, RETURN)
        return self._go(self._header)

    def _emit(self, size: int) -> None:
        if size and self._is_new:
            if self._kind in self._had:
                self._scanner.emit(self._kind(BETWEEN, index=self._scanner.index))
            self._had.add(self._kind)
            self._is_new = False
        self._scanner.emit_text(self._kind, size)


def _may_be_header(text: str) -> bool:
    begun = text.lstrip()
    return any(each.startswith(begun) or begun.startswith(each) for each in BEGINS)


def _is_cut(text: str) -> bool:
    """Whether it has a header's mark, and not only letters that might have become one."""
    return any(each in text for each in (CHANNEL, START))


class MessageCall:
    """A `ToolParser` of messages: each call is opened with its header."""

    def __init__(self, scanner: Scanner, calls: CallWriter) -> None:
        self._scanner = scanner
        self._calls = calls
        self._header = ""
        self._json: JsonEnd | None = None  # None: what comes is text
        self._is_empty = True
        self._step: Callable[[], Step] = self._begin

    def open(self, marker: str) -> None:
        self._header, self._step = marker, self._begin

    def step(self) -> Step:
        return self._step()

    def rejected(self) -> str:
        return self._header

    def _begin(self) -> Step:
        to = RECIPIENT.search(self._header)
        name = to[1].removeprefix(NAMESPACE) if to else ""
        if name not in self._calls.names:
            return Step.NO_CALL
        is_text = self._calls.is_custom(name) and "json" not in RECIPIENT.sub("", self._header)
        (self._calls.begin_text if is_text else self._calls.begin)(name)
        self._json = None if is_text else JsonEnd()
        self._header, self._is_empty, self._step = "", True, self._arguments
        return Step.GO_ON

    def _arguments(self) -> Step:
        """As they were written, up to the end of the message; what follows a JSON object is dropped.

        A mark inside a string of JSON was spelled by the model, and ends nothing.
        """
        scanner = self._scanner
        found = first(scanner.text, ENDS)
        held = 0 if found or scanner.is_over else overlap(scanner.text, ENDS)
        text = scanner.take(found[0] if found else len(scanner.text) - held)
        end = self._json.feed(text) if self._json else None
        self._write(text[:end])
        if end is not None:
            self._step = self._rest
            return Step.GO_ON
        if not found:
            return Step.WAIT
        if self._json and self._json.is_quoted:
            mark = scanner.take(len(found[1]))
            self._json.feed(mark)
            self._write(mark)
            return Step.GO_ON
        return self._close()

    def _rest(self) -> Step:
        scanner = self._scanner
        found = first(scanner.text, ENDS)
        scanner.take(found[0] if found else len(scanner.text) - overlap(scanner.text, ENDS))
        return self._close() if found else Step.WAIT

    def _write(self, text: str) -> None:
        text = text.lstrip() if self._json and self._is_empty else text
        self._is_empty = self._is_empty and not text
        self._calls.arguments(text)

    def _close(self) -> Step:
        if self._json and self._is_empty:
            self._calls.arguments("{}")
        self._calls.end()
        return Step.NO_CALL
