"""What comes out of a run, and the reply it adds up to."""

from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal

from services.engine.base import FinishReason, Times, TokenLogprob


@dataclass(frozen=True, slots=True)
class Head:
    """What all parts of one answer share. The first event of a run: the request is admitted."""

    id: str
    created: int  # epoch seconds
    model: str  # as the client named it
    fingerprint: str
    conversation_id: str | None
    arrived: float = 0.0  # of the request, by the clock of time.perf_counter
    submitted: float = 0.0  # its jobs, by the same clock; 0: not known
    prompt_tokens: int = 0
    truncated: int | None = None  # tokens cut off the prompt, if that was asked for
    service_tier: Literal["default", "flex", "priority"] | None = None  # if one was asked for
    n: int = 1  # choices
    dropped_messages: int = 0  # the oldest of the prompt, left out because it was too long
    prompts: tuple[int, ...] = ()  # tokens of each, where there may be several; as many choices for one as for another

    @property
    def shares(self) -> int:
        """Choices that one prompt has."""
        return self.n // max(1, len(self.prompts))

    def prompt_of(self, index: int) -> int:
        return self.prompts[index // self.shares] if self.prompts else self.prompt_tokens


@dataclass(frozen=True, slots=True)
class Text:
    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    index: int = 0  # of the choice


@dataclass(frozen=True, slots=True)
class Reasoning:
    """What a model thinks before it speaks."""

    text: str
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    index: int = 0


CallKind = Literal["function", "custom", "tool_search"]


@dataclass(frozen=True, slots=True)
class Callee:
    """Who is called, as the client knows it. A model knows each by one flat name."""

    name: str
    kind: CallKind = "function"
    namespace: str | None = None


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call begins; its arguments follow, as pieces of JSON text, or of a custom tool's input as it is."""

    id: str
    name: str
    call: int  # its place among the calls of its choice
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    index: int = 0
    kind: CallKind = "function"
    namespace: str | None = None


@dataclass(frozen=True, slots=True)
class Arguments:
    text: str
    call: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    index: int = 0
    kind: CallKind = "function"


@dataclass(frozen=True, slots=True)
class Finish:
    reason: FinishReason | Literal["tool_calls"]
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0  # of the prompt
    times: Times | None = None
    token_ids: tuple[int, ...] = ()  # those that ended it without a text of their own
    index: int = 0
    reasoning_tokens: int = 0  # of the completion
    stop: str | None = None  # the stop string that ended it


@dataclass(frozen=True, slots=True)
class Compacting:
    """A summary of the earlier conversation is being written."""

    index: int = 0


@dataclass(frozen=True, slots=True)
class Compacted:
    """The summary is there, as an item without an id."""

    item: Mapping[str, Any]
    index: int = 0


OutputEvent = Text | Reasoning | ToolCall | Arguments
Event = Head | OutputEvent | Compacting | Compacted | Finish


@dataclass(slots=True)
class ReplyToolCall:
    id: str
    name: str
    arguments: str = ""
    kind: CallKind = "function"


@dataclass(slots=True)
class ChoiceReply:
    """The fold of one choice: its output so far, and how it ended."""

    text: str = ""
    reasoning: str = ""
    calls: list[ReplyToolCall] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: Finish | None = None

    def add(self, event: OutputEvent | Finish) -> None:
        self.token_ids += event.token_ids
        match event:
            case Finish():
                self.finish = event
                return
            case Text(text):
                self.text += text
            case Reasoning(text):
                self.reasoning += text
            case ToolCall(id, name, kind=kind):
                self.calls.append(ReplyToolCall(id, name, kind=kind))
            case Arguments(text, call):
                self.calls[call].arguments += text
        self.logprobs += event.logprobs


@dataclass(slots=True)
class Reply:
    """The fold of events. Only a reply of one choice goes into a conversation, and is asked for its `text`."""

    head: Head | None = None
    choices: list[ChoiceReply] = field(default_factory=lambda: [ChoiceReply()])

    def add(self, event: Event) -> None:
        match event:
            case Head(n=n):
                self.head = event
                self.choices = [ChoiceReply() for _ in range(n)]
            case Compacting() | Compacted():  # of the earlier conversation
                pass
            case _:
                self.choices[event.index].add(event)

    @property
    def text(self) -> str:
        return self.choices[0].text


async def reply_of(run: AsyncGenerator[Event, None]) -> Reply:
    """The fold of a whole run."""
    reply = Reply()
    async with aclosing(run):
        async for event in run:
            reply.add(event)
    return reply


async def head_of(run: AsyncIterator[Event]) -> Head:
    """The first event of a run; whatever refuses the request is raised here."""
    head = await anext(run)
    assert isinstance(head, Head)
    return head
