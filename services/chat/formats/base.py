"""The parts of a chat format: how a family of models writes tool calls, and marks its thoughts.

A tool format is one file of this package: what it looks like in a chat template (`detect`), the streaming parser of its
calls, and the grammar that forces one. One whose models divide their answers further has an `AnswerFormat`, too.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol

from schemas.tool_schema import Function, Grammar
from services.chat.events import Callee
from services.chat.parsing.call_writer import CallWriter
from services.chat.parsing.scanner import ParsedEvent, Scanner


class Step(Enum):
    """What one step of a parser has found."""

    GO_ON = auto()  # something was understood: the next step may follow at once
    WAIT = auto()  # the text does not tell yet
    NO_CALL = auto()  # what comes here is content
    OVER = auto()  # the answer has ended, whatever the model goes on with


class ToolParser(Protocol):
    """Reads the calls of one answer while its text comes."""

    def open(self, marker: str) -> None:
        """A call may begin here: behind this marker, which was taken, or without one (an empty text)."""

    def step(self) -> Step: ...

    def rejected(self) -> str:
        """After NO_CALL: the text that was taken since `open` or the last call. It is content."""


@dataclass(frozen=True, slots=True)
class CallRule:
    """One tool in a grammar: its rules in Lark, of which the first is the call's own.

    `param`: the part of the request that says what the tool takes. `text`: the grammar of a custom tool's input.
    """

    name: str
    function: Function
    param: str
    text: Grammar | None = None


class ToolFormat(Protocol):
    """How tool calls are written: `before`, the calls with `between` among them, `after`.

    The parts of these texts are special tokens, where they look like one, and plain text elsewhere.
    """

    @property
    def name(self) -> str: ...
    @property
    def marker(self) -> str:
        """What begins calls in the middle of an answer; empty where nothing does."""

    @property
    def unmarked(self) -> str:
        """What begins a call in the middle of an answer whose marker the model has left out; empty: none ever is."""

    @property
    def answer(self) -> "AnswerFormat | None":
        """None: an answer may think, and then has content with calls in it."""

    @property
    def before(self) -> tuple[str, ...]: ...
    @property
    def between(self) -> tuple[str, ...]:
        """Empty where an answer has one call only."""

    @property
    def after(self) -> tuple[str, ...]: ...
    @property
    def bare(self) -> bool:
        """Whether a call may begin the answer without a marker."""

    @property
    def text_end(self) -> str:
        """What ends the input of a custom tool with a grammar, if something does before the answer ends."""

    def detect(self, template: str) -> bool:
        """Whether the source of a chat template shows calls in this format."""

    def parser(self, scanner: Scanner, calls: CallWriter) -> ToolParser: ...

    def write(self, calls: Iterable[tuple[str, str]]) -> str:
        """Names and JSON arguments, as a model writes them."""

    def example(self) -> str:
        """A call of `NAME`, for models whose template shows none."""

    def call_id(self, id: str, name: str, place: int) -> str:
        """What a template is given as the id of an earlier call. `place`: among the calls of the conversation."""

    def call_rules(self, rule: CallRule) -> list[str]:
        """Lark rules: `rule.name` is one call. They may add rules whose names begin with it."""

    def text_begin(self, name: str) -> str:
        """What comes before the input of a custom tool with a grammar, behind `before` or `between`."""

    def text_rules(self, rule: CallRule) -> list[str]:
        """The same as `call_rules` for a custom tool with a grammar, without the end of its text."""


@dataclass(frozen=True, slots=True)
class ThinkingTags:
    """`label`: what comes behind `begin` and is no thought. `content`: what may stand around the content.

    `begin` is empty where answers begin with thoughts that nothing marks. `again`: they may come behind content, too.
    """

    begin: str
    end: str
    label: str = ""
    content: tuple[str, str] = ("", "")
    again: bool = False


class AnswerParser(Protocol):
    """Reads one answer while its text comes."""

    @property
    def num_calls(self) -> int: ...
    @property
    def stopped_by(self) -> str | None:
        """The stop string that ended it."""

    @property
    def is_over(self) -> bool:
        """Whatever the model goes on with is no part of it."""

    def feed(self, text: str, *, may_stop: bool = True) -> list[ParsedEvent]: ...

    def finish(self) -> list[ParsedEvent]: ...


class AnswerFormat(Protocol):
    """How an answer is divided into thoughts, content and calls, where all of them are marked."""

    @property
    def opening(self) -> str:
        """What a prompt ends with, unless it has begun the content."""

    @property
    def thinking(self) -> ThinkingTags: ...
    @property
    def efforts(self) -> Mapping[str, str]:
        """Of thinking, as requests name them, and as the template does. Others are refused."""

    @property
    def earlier(self) -> str:
        """In Lark, what may come before content that is held to a form, or before calls."""

    @property
    def content(self) -> tuple[str, ...]:
        """What begins it."""

    def parser(self, format: "OutputFormat", index: int) -> AnswerParser: ...


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """What a model was taught to write, as far as its chat template shows."""

    tools: ToolFormat
    shows_tools: bool = False  # the template itself
    shows_calls: bool = False  # and the results of calls, in earlier messages
    calls_as_text: bool = False  # of these the results only: the calls are to be in the content
    tools_in_message: bool = False  # as a text, in a field of the system's message
    result_role: str = "tool"
    takes_system: bool = True
    thinking: ThinkingTags | None = None
    switch: str | None = None  # the template's argument that turns thinking on or off
    has_effort: bool = False
    thought_key: str = "reasoning_content"  # of earlier messages, as the template reads them
    content_marks: tuple[str, ...] = ()  # that stand around content, and are no part of it


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """What is told apart in the text of one answer."""

    thinking: ThinkingTags | None = None
    begun: bool = False  # the prompt has opened the thinking already
    tools: ToolFormat | None = None  # None: no tools are offered
    names: frozenset[str] = frozenset()  # of the tools
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # their JSON schemas, by those names
    callees: Mapping[str, Callee] = field(default_factory=dict)  # those that are no functions of the same name
    answer: AnswerFormat | None = None
    in_content: bool = False  # which the prompt has begun; where `answer` marks it
    content_marks: tuple[str, ...] = ()  # that are no part of it
    stop: tuple[str, ...] = ()  # strings that end it, in its content
    include_stop: bool = False
    min_tokens: int = 0  # in these no stop string is looked for
    answer_id: str = ""  # of which the ids of its calls are made
    prompt_only: bool = False  # without the token that an engine samples at least

    @property
    def is_plain(self) -> bool:
        return self.thinking is None and self.tools is None and self.answer is None and not self.content_marks
