"""The text of one answer, split while it comes into what is thought, what is said and which tools are called."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from uuid import uuid4

from services.chat.dialects import RAW_HEADER, Calls, Header, Thinking
from services.chat.events import Arguments, Callee, Reasoning, Spoken, Text, ToolCall
from services.chat.parsing.input_text import InputText, unwrapped
from services.chat.parsing.json_text import JsonEnd, call_in
from services.engine.stops import first, overlap

BETWEEN = re.compile(r"[\s\[\],;]")  # around calls


@dataclass(frozen=True, slots=True)
class Format:
    """What there is to be told apart in an answer."""

    thinking: Thinking | None = None
    begun: bool = False  # the prompt has opened the thinking already
    calls: Calls | None = None  # None: no tools are offered
    names: frozenset[str] = frozenset()  # of the tools
    callees: Mapping[str, Callee] = field(default_factory=dict)  # those that are no functions of the same name
    stop: tuple[str, ...] = ()  # strings that end it, in what is said
    include_stop: bool = False
    min_tokens: int = 0  # in these no stop string is looked for

    @property
    def is_plain(self) -> bool:
        return self.thinking is None and self.calls is None


@dataclass(frozen=True, slots=True)
class Part:
    event: Spoken
    end: int  # of the characters it was made from, counted from the beginning of the answer


class Splitter:
    """Every character comes out once, but for markers and the white space around them.

    What turns out to be no call is content, markers and all: nothing that was said is lost.
    """

    def __init__(self, format: Format, index: int = 0) -> None:
        self._format = format
        self._index = index
        self.num_calls = 0
        self.stopped_by: str | None = None
        self._stops: tuple[str, ...] = ()  # that are looked for now
        self._buffer = ""  # come, and not yet understood
        self._passed: str | None = ""  # before a call, if it is one; None: one came, what is between is dropped
        self._object = ""  # perhaps a call, in an unusual order
        self._is_wrapped = False  # the call, in an object
        self._num_taken = 0
        self._is_over = False
        self._json = JsonEnd()
        self._callee = Callee("")
        self._customs = {name for name, each in format.callees.items() if each.kind == "custom"}
        self._input: InputText | None = None  # of the call, while it comes
        self._parts: list[Part] = []
        self._step: Callable[[], bool] = self._skip_to_thought if format.begun else self._open

    def feed(self, text: str, *, may_stop: bool = True) -> list[Part]:
        self._buffer += text
        self._stops = self._format.stop if may_stop else ()
        return self._run()

    def finish(self) -> list[Part]:
        self._is_over = True
        parts = self._run()
        self._end_input()
        return parts + self._take_parts()

    def _run(self) -> list[Part]:
        while self._step():
            pass
        return self._take_parts()

    def _take_parts(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return parts

    # --- steps: each takes what it understands of the buffer, and says whether to go on at once ---

    def _open(self) -> bool:
        thinking, text = self._format.thinking, self._buffer.lstrip()
        if thinking and text.startswith(thinking.begin):
            self._take(len(self._buffer) - len(text) + len(thinking.begin))
            return self._go(self._skip_to_thought)
        if thinking and self._may_become(thinking.begin, text):
            return False
        return self._go(self._answer)

    def _skip_to_thought(self) -> bool:
        return self._skip_blank() and self._go(self._think)

    def _think(self) -> bool:
        assert self._format.thinking
        end = self._format.thinking.end
        return self._say_until(end, Reasoning) == end and self._go(self._skip_to_answer)

    def _skip_to_answer(self) -> bool:
        return self._skip_blank() and self._go(self._answer)

    def _answer(self) -> bool:
        calls = self._format.calls
        return self._go(self._call if calls and calls.bare else self._speak)

    def _speak(self) -> bool:
        marker = self._format.calls.marker if self._format.calls else ""
        found = self._say_until(marker, Text, self._stops)
        if found and found == marker:
            self._passed = marker
            return self._go(self._call)
        return found is not None and self._go(self._stop)

    def _stop(self) -> bool:
        return False

    def _call(self) -> bool:
        """Where a call begins, or after one."""
        calls = self._calls
        markers = [each for each in (calls.marker, calls.end if self._passed is None else "") if each]
        for marker in markers:
            if self._buffer.startswith(marker):
                self._take(len(marker))
                self._passed = marker if marker == calls.marker else None
                return True
        if any(self._may_become(marker, self._buffer) for marker in markers):
            return False
        if BETWEEN.match(self._buffer):
            return self._pass_over()
        for header in calls.headers:
            if (found := header.whole.match(self._buffer)) and found["name"] in self._format.names:
                self._take(found.end())
                return self._begin_arguments(header, found["name"])
        if found := self._raw_header():
            self._take(found.end())
            self._begin_call(found["name"])
            self._input = None
            return self._go(self._say_raw)
        if self._may_be_header():
            return False
        self._json = JsonEnd()
        return self._go(self._understand if self._buffer.startswith("{") else self._take_back)

    def _begin_arguments(self, header: Header, name: str) -> bool:
        self._begin_call(name)
        self._is_wrapped = header.wrapped
        return self._go(self._argue)

    def _raw_header(self) -> re.Match[str] | None:
        found = RAW_HEADER.whole.match(self._buffer)
        return found if found and found["name"] in self._customs else None

    def _say_raw(self) -> bool:
        """The input of a custom tool as it is."""
        found = first(self._buffer, filter(None, [self._calls.raw_end]))
        if found is None:
            held = 0 if self._is_over else overlap(self._buffer, list(filter(None, [self._calls.raw_end])))
            self._say(Arguments, len(self._buffer) - held)
            return False
        self._say(Arguments, found[0])
        return self._go(self._call)

    def _argue(self) -> bool:
        """Arguments are passed on as they were written."""
        end = self._json.feed(self._buffer)
        self._say(Arguments, len(self._buffer) if end is None else end)
        if end is not None:
            self._end_input()
        return end is not None and self._go(self._close if self._is_wrapped else self._call)

    def _close(self) -> bool:
        """What is left of the object around the arguments."""
        if not self._skip_blank():
            return False
        self._json = JsonEnd(depth=1)
        return self._go(self._skip_rest if self._buffer[0] in ",}" else self._call)

    def _skip_rest(self) -> bool:
        end = self._json.feed(self._buffer)
        self._take(len(self._buffer) if end is None else end)
        return end is not None and self._go(self._call)

    def _understand(self) -> bool:
        """A whole object, of which only then can be said whether it is a call."""
        end = self._json.feed(self._buffer)
        self._object += self._take(len(self._buffer) if end is None else end)
        marker = self._calls.marker
        if marker and marker in self._object:  # the next one begins; who waits for the end reads all of it for each
            return self._go(self._take_back)
        if end is None and not self._is_over:
            return False
        called = call_in(self._object)
        if called is None or called.name not in self._format.names:
            return self._go(self._take_back)
        self._object = ""
        self._begin_call(called.name)
        is_custom = self._callee.kind == "custom"
        self._argument(unwrapped(called.arguments) if is_custom else called.arguments)
        self._input = None
        return self._go(self._call)

    def _take_back(self) -> bool:
        """It was no call: all of it is content, and the marker by itself, not to be found again."""
        text = (self._passed or "") + self._object
        self._passed, self._object = "", ""
        self._buffer, self._num_taken = text + self._buffer, self._num_taken - len(text)
        if self._calls.marker and text.startswith(self._calls.marker):
            self._say(Text, len(self._calls.marker))
        return self._go(self._speak)

    # --- what they are made of ---

    def _go(self, step: Callable[[], bool]) -> bool:
        self._step = step
        return True

    def _take(self, size: int) -> str:
        text, self._buffer = self._buffer[:size], self._buffer[size:]
        self._num_taken += len(text)
        return text

    def _add(self, event: Spoken) -> None:
        self._parts.append(Part(event, self._num_taken))

    def _say(self, kind: type[Text | Reasoning | Arguments], size: int) -> None:
        text = self._take(size)
        if not text:
            return
        if kind is Arguments:
            self._argument(self._input.feed(text) if self._input else text)
        elif kind is Reasoning:
            self._add(Reasoning(text, index=self._index))
        else:
            self._add(Text(text, index=self._index))

    def _argument(self, text: str) -> None:
        if text:
            self._add(Arguments(text, self.num_calls - 1, index=self._index, kind=self._callee.kind))

    def _end_input(self) -> None:
        if self._input:
            self._argument(self._input.finish())
            self._input = None

    def _say_until(self, marker: str, kind: type[Text | Reasoning], stops: tuple[str, ...] = ()) -> str | None:
        """The marker or the stop string that came first, if one did. White space in front of a marker is dropped."""
        found = first(self._buffer, (each for each in (marker, *stops) if each))
        if found is None:
            self._say(kind, len(self._buffer) - self._num_held(marker, stops))
            return None
        start, string = found
        if string == marker:
            self._say(kind, len(self._buffer[:start].rstrip()))
            self._take(self._buffer.index(marker) + len(marker))
        else:
            self.stopped_by = string
            self._say(kind, start + (len(string) if self._format.include_stop else 0))
        return string

    def _num_held(self, marker: str, stops: tuple[str, ...]) -> int:
        """Characters at the end of the buffer that may belong to one of them, or to the space before the marker."""
        if self._is_over:
            return 0
        before = (
            self._buffer[: len(self._buffer) - overlap(self._buffer, [marker])].rstrip() if marker else self._buffer
        )
        return max(len(self._buffer) - len(before), overlap(self._buffer, stops))

    def _skip_blank(self) -> bool:
        """Whether something follows."""
        self._take(len(self._buffer) - len(self._buffer.lstrip()))
        return bool(self._buffer)

    def _pass_over(self) -> bool:
        letter = self._take(1)
        if self._passed is not None:
            self._passed += letter
        return True

    def _may_become(self, marker: str, text: str) -> bool:
        return not self._is_over and marker.startswith(text)

    def _may_be_header(self) -> bool:
        headers = [*self._calls.headers, RAW_HEADER] if self._customs else self._calls.headers
        return not self._is_over and any(each.begun.fullmatch(self._buffer) for each in headers)

    def _begin_call(self, name: str) -> None:
        self._json = JsonEnd()
        self._callee = callee = self._format.callees.get(name) or Callee(name)
        self._input = InputText() if callee.kind == "custom" else None
        id = f"call_{uuid4().hex}"
        call = ToolCall(
            id, callee.name, self.num_calls, index=self._index, kind=callee.kind, namespace=callee.namespace
        )
        self._add(call)
        self.num_calls += 1
        self._passed = None

    @property
    def _calls(self) -> Calls:
        assert self._format.calls
        return self._format.calls
