"""Pieces -> events: the deltas of each channel (reasoning, content, tool calls) of each choice."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from services.chat.events import Event, Finish, Head, OutputEvent, Reasoning, Text
from services.chat.formats.base import OutputFormat
from services.chat.parsing.output_parser import answer_parser
from services.engine.base import Piece, TokenLogprob
from services.errors import EngineFailed

PLAIN = OutputFormat()


def events(
    head: Head, streams: Sequence[AsyncGenerator[Piece, None]], echoes: Sequence[str] = (), format: OutputFormat = PLAIN
) -> AsyncGenerator[Event, None]:
    """The head, then the events of each stream as they come, each behind its echo."""
    choices = [
        ChoiceParser(format, index, head.prompt_of(index), echoes[index] if echoes else "")
        for index in range(len(streams))
    ]
    if len(streams) == 1:
        return _parsed(choices[0], streams[0], head)
    return _merged(head, [_parsed(choice, pieces) for choice, pieces in zip(choices, streams, strict=True)])


@dataclass(frozen=True, slots=True)
class TokenSpan:
    start: int  # of their text, in characters of the answer
    ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]


class ChoiceParser:
    """Hands tokens over with the event that their text is in; those of markers go with the event after."""

    def __init__(self, format: OutputFormat, index: int, prompt_tokens: int, echo: str = "") -> None:
        self._format = format
        self._echo = echo
        self.is_finished = False
        self._parser = answer_parser(format, index)
        self._index = index
        self._prompt_tokens = prompt_tokens
        self._tokens: deque[TokenSpan] = deque()
        self._num_read = 0  # characters
        self._completion_tokens = 0
        self._reasoning_tokens = 0
        self._cached_tokens = 0

    def feed(self, piece: Piece) -> list[OutputEvent | Finish]:
        if self._format.prompt_only:
            piece = replace(piece, text="", token_ids=(), logprobs=(), finish="length", stop=None)
        events: list[OutputEvent | Finish] = [*self._echoed(piece), *self._parsed(piece)]
        if piece.finish or self.is_over:
            self.is_finished = True
            events += self._finished(piece)
        return events

    def _echoed(self, piece: Piece) -> list[Text]:
        """The echo, and the prompt's own logprobs: they come with the first piece."""
        echo, self._echo = self._echo, ""
        return [Text(echo, logprobs=piece.prompt, index=self._index)] if echo or piece.prompt else []

    def _parsed(self, piece: Piece) -> list[OutputEvent]:
        self._completion_tokens += len(piece.token_ids)
        if piece.token_ids or piece.logprobs:
            self._tokens.append(TokenSpan(self._num_read, piece.token_ids, piece.logprobs))
        self._num_read += len(piece.text)
        self._cached_tokens = max(self._cached_tokens, piece.cached_tokens)
        parsed = self._parser.feed(piece.text, may_stop=self._completion_tokens > self._format.min_tokens)
        return [self._with_tokens(each.event, each.end) for each in parsed]

    @property
    def is_over(self) -> bool:
        """Its end came, of which the engine does not know."""
        return self._parser.is_over

    def _finished(self, last: Piece) -> list[OutputEvent | Finish]:
        events: list[OutputEvent | Finish] = [self._with_tokens(each.event, each.end) for each in self._parser.finish()]
        if any(tokens.logprobs for tokens in self._tokens) and not self.is_over:
            events.append(self._with_tokens(Text("", index=self._index), self._num_read + 1))  # each token is reported
        return [*events, self._finish(last)]

    def _finish(self, last: Piece) -> Finish:
        reason = "stop" if self.is_over else last.finish
        assert reason
        return Finish(
            "tool_calls" if self._parser.num_calls and reason == "stop" else reason,
            self._prompt_tokens,
            self._completion_tokens,
            self._cached_tokens,
            last.times,
            tuple(token for tokens in self._tokens for token in tokens.ids),
            self._index,
            self._reasoning_tokens,
            stop=self._parser.stopped_by or last.stop,
        )

    def _with_tokens(self, event: OutputEvent, end: int) -> OutputEvent:
        ids: tuple[int, ...] = ()
        logprobs: tuple[TokenLogprob, ...] = ()
        while self._tokens and self._tokens[0].start < end:
            tokens = self._tokens.popleft()
            ids, logprobs = ids + tokens.ids, logprobs + tokens.logprobs
        if isinstance(event, Reasoning):
            self._reasoning_tokens += len(ids)
        if isinstance(event, Text):  # nearly all are, and `replace` costs as much as the rest of this
            return Text(event.text, ids, logprobs, event.index)
        return replace(event, token_ids=ids, logprobs=logprobs) if ids or logprobs else event


async def _parsed(
    choice: ChoiceParser, pieces: AsyncGenerator[Piece, None], head: Head | None = None
) -> AsyncGenerator[Event, None]:
    if head:
        yield head
    async with aclosing(pieces):
        async for piece in pieces:
            for event in choice.feed(piece):
                yield event
            if choice.is_finished:
                return
    raise EngineFailed("The engine ended without finishing its answer")


async def _merged(head: Head, choices: Sequence[AsyncGenerator[Event, None]]) -> AsyncGenerator[Event, None]:
    """All at once, each in its own order. The first to fail ends all of them."""
    yield head
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
