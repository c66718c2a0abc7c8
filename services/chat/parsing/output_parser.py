"""The text of one answer, parsed while it comes into thoughts, content and tool calls."""

from collections.abc import Callable

from services.chat.events import Reasoning, Text
from services.chat.formats.base import AnswerParser, OutputFormat, Step
from services.chat.parsing.call_writer import CallWriter
from services.chat.parsing.scanner import ParsedEvent, Scanner
from services.engine.stop_strings import first, overlap


def answer_parser(format: OutputFormat, index: int = 0) -> AnswerParser:
    return format.answer.parser(format, index) if format.answer else OutputParser(format, index)


class OutputParser:
    """Every character comes out once, but for markers and the white space around them.

    What turns out to be no call is content, markers and all: no text is lost.
    """

    def __init__(self, format: OutputFormat, index: int = 0) -> None:
        self._format = format
        self.stopped_by: str | None = None
        self._stops: tuple[str, ...] = ()  # that are looked for now
        self._scanner = Scanner(index)
        self._calls = CallWriter(self._scanner, format.names, format.callees, format.parameters, format.answer_id)
        self._tools = format.tools.parser(self._scanner, self._calls) if format.tools else None
        self._marker = format.tools.marker if format.tools else ""
        self._unmarked = format.tools.unmarked if format.tools else ""
        self._space = ""  # that stood before the mark found last
        self._content_end = ""  # what is dropped at its end
        self._again = format.thinking.begin if format.thinking and format.thinking.again else ""
        self._step: Callable[[], bool] = self._skip_label if format.begun else self._open

    @property
    def num_calls(self) -> int:
        return self._calls.num_calls

    @property
    def is_over(self) -> bool:
        return self.stopped_by is not None or self._step == self._stop

    def feed(self, text: str, *, may_stop: bool = True) -> list[ParsedEvent]:
        self._scanner.text += text
        self._stops = self._format.stop if may_stop else ()
        return self._run()

    def finish(self) -> list[ParsedEvent]:
        self._scanner.is_over = True
        parts = self._run()
        self._calls.end()
        return parts + self._scanner.take_events()

    def _run(self) -> list[ParsedEvent]:
        while self._step():
            pass
        return self._scanner.take_events()

    def _go(self, step: Callable[[], bool]) -> bool:
        self._step = step
        return True

    # --- steps: each takes what it understands of the text, and says whether to go on at once ---

    def _open(self) -> bool:
        thinking, text = self._format.thinking, self._scanner.text.lstrip()
        if thinking and thinking.begin and text.startswith(thinking.begin):
            self._scanner.take(len(self._scanner.text) - len(text) + len(thinking.begin))
            return self._go(self._skip_label)
        if thinking and self._scanner.may_become(thinking.begin, text):
            return False
        return self._go(self._skip_to_answer if thinking and thinking.content[0] else self._answer)

    def _skip_label(self) -> bool:
        scanner, label = self._scanner, self._format.thinking.label if self._format.thinking else ""
        if label and scanner.text.startswith(label):
            scanner.take(len(label))
        elif label and scanner.may_become(label):
            return False
        return self._go(self._skip_to_thought)

    def _skip_to_thought(self) -> bool:
        return self._scanner.skip_blank() and self._go(self._think)

    def _think(self) -> bool:
        assert self._format.thinking
        end = self._format.thinking.end
        call = "" if self._format.thinking.begin else self._marker  # which ends thoughts that nothing marks
        found = self._emit_until((end, call), Reasoning)
        if found and found == call:
            return self._begin_calls(found)
        return found == end and self._go(self._skip_to_answer)

    def _skip_to_answer(self) -> bool:
        scanner, thinking = self._scanner, self._format.thinking
        begin, end = thinking.content if thinking else ("", "")
        if not scanner.skip_blank() or (begin and not scanner.text.startswith(begin) and scanner.may_become(begin)):
            return False
        if begin and scanner.text.startswith(begin):
            scanner.take(len(begin))
            self._content_end = end
            return True
        return self._go(self._answer)

    def _answer(self) -> bool:
        if self._tools and self._format.tools and self._format.tools.bare:
            self._tools.open("")
            return self._go(self._call)
        return self._go(self._content)

    def _content(self) -> bool:
        dropped = (self._content_end, *self._format.content_marks)
        found = self._emit_until((self._marker, self._unmarked, self._again, *dropped), Text, self._stops)
        if found and found in dropped:
            return True
        if found and found == self._again:
            return self._go(self._skip_label)
        if found and found == self._marker:
            return self._begin_calls(found)
        if found and found == self._unmarked:
            assert self._tools
            self._scanner.put_back(found)
            self._tools.open("")
            return self._go(self._call)
        return found is not None and self._go(self._stop)

    def _begin_calls(self, marker: str) -> bool:
        assert self._tools
        self._tools.open(marker)
        return self._go(self._call)

    def _call(self) -> bool:
        assert self._tools
        num_calls = self._calls.num_calls
        step = self._tools.step()
        if self._calls.num_calls > num_calls:
            self._space = ""  # it was the call's
        if step is Step.OVER:
            return self._go(self._stop)
        return step is Step.GO_ON or (step is Step.NO_CALL and self._take_back(self._tools.rejected()))

    def _take_back(self, text: str) -> bool:
        """It was no call: all of it is content, and the marker by itself, not to be found again."""
        scanner, space = self._scanner, self._space
        self._space = ""
        scanner.put_back(text)
        if self._marker and text.startswith(self._marker):
            scanner.put_back(space)
            scanner.emit_text(Text, len(space) + len(self._marker))
        elif not text and self._unmarked and scanner.text.startswith(self._unmarked):
            scanner.put_back(space)
            scanner.emit_text(Text, len(space) + len(self._unmarked))
        return self._go(self._content)

    def _stop(self) -> bool:
        return False

    # --- what they are made of ---

    def _emit_until(
        self, marks: tuple[str, ...], kind: type[Text | Reasoning], stops: tuple[str, ...] = ()
    ) -> str | None:
        """The mark or the stop string that came first, if one did. White space in front of a mark is dropped."""
        scanner, marks = self._scanner, tuple(filter(None, marks))
        found = first(scanner.text, (*marks, *filter(None, stops)))
        if found is None:
            scanner.emit_text(kind, len(scanner.text) - self._num_held(marks, stops))
            return None
        start, string = found
        if string in marks:
            scanner.emit_text(kind, len(scanner.text[:start].rstrip()))
            self._space = scanner.take(scanner.text.index(string))
            scanner.take(len(string))
        else:
            self.stopped_by = string
            scanner.emit_text(kind, start + (len(string) if self._format.include_stop else 0))
        return string

    def _num_held(self, marks: tuple[str, ...], stops: tuple[str, ...]) -> int:
        """Characters at the end of the text that may belong to one of them, or to the space before a mark."""
        text = self._scanner.text
        if self._scanner.is_over:
            return 0
        before = text[: len(text) - overlap(text, marks)].rstrip() if marks else text
        return max(len(text) - len(before), overlap(text, stops))
