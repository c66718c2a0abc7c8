"""What comes out of a run, and the reply it adds up to."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Literal

from services.engine.base import FinishReason, Piece, Times, TokenLogprob
from services.errors import EngineFailed


@dataclass(frozen=True, slots=True)
class Head:
    """What all parts of one answer share. The first event of a run: the request is admitted."""

    id: str
    created: int  # epoch seconds
    model: str  # as the client named it
    fingerprint: str
    reply_id: str
    conversation_id: str | None
    arrived: float = 0.0  # of the request, by the clock of time.perf_counter
    prompt_tokens: int = 0
    truncated: int | None = None  # tokens cut off the prompt, if that was asked for
    n: int = 1  # choices
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


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call begins; its arguments follow, as pieces of JSON text."""

    id: str
    name: str
    call: int  # its place among the calls of its choice
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    index: int = 0


@dataclass(frozen=True, slots=True)
class Arguments:
    text: str
    call: int
    token_ids: tuple[int, ...] = ()
    logprobs: tuple[TokenLogprob, ...] = ()
    index: int = 0


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


Spoken = Text | Reasoning | ToolCall | Arguments
Event = Head | Spoken | Finish


@dataclass(slots=True)
class SaidCall:
    id: str
    name: str
    arguments: str = ""


@dataclass(slots=True)
class Said:
    """The fold of one choice: what was said so far, and how it ended."""

    text: str = ""
    reasoning: str = ""
    calls: list[SaidCall] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: Finish | None = None

    def add(self, event: Spoken | Finish) -> None:
        self.token_ids += event.token_ids
        match event:
            case Finish():
                self.finish = event
                return
            case Text(text):
                self.text += text
            case Reasoning(text):
                self.reasoning += text
            case ToolCall(id, name):
                self.calls.append(SaidCall(id, name))
            case Arguments(text, call):
                self.calls[call].arguments += text
        self.logprobs += event.logprobs


@dataclass(slots=True)
class Reply:
    """The fold of events. Only a reply of one choice goes into a conversation, and is asked for its `text`."""

    head: Head | None = None
    choices: list[Said] = field(default_factory=lambda: [Said()])

    def add(self, event: Event) -> None:
        match event:
            case Head(n=n):
                self.head = event
                self.choices = [Said() for _ in range(n)]
            case _:
                self.choices[event.index].add(event)

    @property
    def text(self) -> str:
        return self.choices[0].text

    @property
    def finish(self) -> Finish | None:
        return self.choices[0].finish


async def events(
    head: Head, streams: Sequence[AsyncGenerator[Piece, None]], echoes: Sequence[str] = ()
) -> AsyncGenerator[Event, None]:
    """The head, then what each stream says, as it comes, each behind its echo."""
    yield head
    for index, echo in enumerate(echoes):
        if echo:
            yield Text(echo, index=index)
    choices = [_choice(index, pieces, head.prompt_of(index)) for index, pieces in enumerate(streams)]
    async with aclosing(choices[0] if len(choices) == 1 else _merged(choices)) as run:
        async for event in run:
            yield event


async def _choice(
    index: int, pieces: AsyncGenerator[Piece, None], prompt_tokens: int
) -> AsyncGenerator[Text | Finish, None]:
    completion_tokens = 0
    silent: tuple[int, ...] = ()  # tokens that have made no text yet
    async with aclosing(pieces):
        async for piece in pieces:
            completion_tokens += len(piece.token_ids)
            silent += piece.token_ids
            if piece.text or piece.logprobs:
                yield Text(piece.text, silent, piece.logprobs, index)
                silent = ()
            if piece.finish:
                yield Finish(
                    piece.finish,
                    prompt_tokens,
                    completion_tokens,
                    piece.cached_tokens,
                    piece.times,
                    silent,
                    index,
                    stop=piece.stop,
                )
                return
    raise EngineFailed("The engine ended without finishing its answer")


async def _merged(
    choices: Sequence[AsyncGenerator[Text | Finish, None]],
) -> AsyncGenerator[Text | Finish, None]:
    """All at once, each in its own order. The first to fail ends all of them."""
    waiting = {asyncio.ensure_future(anext(choice, None)): choice for choice in choices}
    try:
        while waiting:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in [task for task in waiting if task in done]:  # in the order of their choices
                choice = waiting.pop(task)
                if (event := task.result()) is not None:
                    yield event
                    waiting[asyncio.ensure_future(anext(choice, None))] = choice
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        for choice in choices:
            await choice.aclose()


async def head_of(run: AsyncIterator[Event]) -> Head:
    """The first event of a run; whatever refuses the request is raised here."""
    head = await anext(run)
    assert isinstance(head, Head)
    return head
