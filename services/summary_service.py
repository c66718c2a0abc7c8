"""Summaries of conversations, written by the model that answers in them, through the pipeline that all answers come
through. What is longer than the model's context is read in portions, of which each makes the notes on those before it
anew.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

from schemas.chat_schema import ChatCompletionRequest
from services.chat.compaction.notes import Notes
from services.chat.compaction.transcript import cut
from services.chat.events import Compacting, Event, Finish, Head, Reply, Text
from services.chat_service import ChatService, retry_overloads
from services.errors import EngineFailed, PromptTooLong, UnsupportedParameter

FEWEST = 200  # characters of a portion: a context without room for them has none for a summary
MOST_CHARS = 8  # of a token: so many a portion has at most
MARGIN = 0.9  # of the room, because the tokens of a portion are estimated from those of the whole


@dataclass(frozen=True, slots=True)
class Summary:
    text: str
    finish: Finish  # of all portions together


SummaryProgress = Head | Compacting | Summary


class SummaryService:
    def __init__(self, chat: ChatService) -> None:
        self._chat = chat

    async def write(self, transcript: str, notes: Notes, owner: str) -> AsyncGenerator[SummaryProgress, None]:
        """A Head once it is admitted, then a sign with each piece that is written, and the summary at the end. Refusals
        are raised by the first step: later portions wait for room."""
        notes = await self._with_least_thinking(notes, owner)
        rest, so_far, used = transcript, "", Finish("stop", 0, 0)
        while rest:
            size = await self._portion(rest, notes, so_far, owner)
            reply, is_first = Reply(), not so_far
            async with aclosing(self._answer(notes.request(rest[:size], so_far), owner, waits=not is_first)) as run:
                async for event in run:
                    reply.add(event)
                    if is_first and isinstance(event, Head):
                        yield event
                    if isinstance(event, Head | Text):
                        yield Compacting()
            rest, so_far, used = rest[size:], _summary_text(reply), _together(used, reply)
        yield Summary(so_far, used)

    def _answer(self, request: ChatCompletionRequest, owner: str, *, waits: bool) -> AsyncGenerator[Event, None]:
        run = partial(self._chat.run, request, owner)
        return retry_overloads(run) if waits else run()

    async def _with_least_thinking(self, notes: Notes, owner: str) -> Notes:
        """None, or little, or as much as the model thinks by itself: not each can be told."""
        for tried in (replace(notes, effort="none", thinking=0), replace(notes, effort="minimal")):
            try:
                await self._chat.prompt_of(tried.request(""), owner)
            except UnsupportedParameter:
                continue
            return tried
        return notes

    async def _portion(self, rest: str, notes: Notes, so_far: str, owner: str) -> int:
        """Characters of it that the model can read at once."""
        length = await self._chat.max_length(notes.model)
        room = length - notes.max_tokens - notes.thinking
        size = min(len(rest), MOST_CHARS * length)
        while (tokens := await self._tokens(notes.request(rest[:size], so_far), owner, length)) > room:
            if size <= FEWEST:
                raise PromptTooLong(tokens, room, param="messages")
            size = cut(rest, max(FEWEST, int(MARGIN * size * room / tokens)))
        return size

    async def _tokens(self, request: ChatCompletionRequest, owner: str, length: int) -> int:
        try:
            return len(await self._chat.prompt_of(request, owner, limit=length))
        except PromptTooLong as error:
            return error.tokens


def _summary_text(reply: Reply) -> str:
    if not (text := reply.text.strip()):
        raise EngineFailed("The model has written no summary of the conversation")
    return text


def _together(used: Finish, reply: Reply) -> Finish:
    finish = reply.choices[0].finish
    assert finish is not None
    return replace(
        used,
        prompt_tokens=used.prompt_tokens + finish.prompt_tokens,
        cached_tokens=used.cached_tokens + finish.cached_tokens,
        completion_tokens=used.completion_tokens + finish.completion_tokens,
        reasoning_tokens=used.reasoning_tokens + finish.reasoning_tokens,
    )
