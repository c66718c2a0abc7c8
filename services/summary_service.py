"""Writes summaries of conversations with the served model, through the chat pipeline.

A conversation longer than the model's context is read in portions; each request extends the summary so far by one.
"""

from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from functools import partial

from services.chat.compaction.summary_prompt import SummaryPrompt
from services.chat.compaction.transcript import portion_end
from services.chat.events import Event, Finish, Head, Reply, Text
from services.chat_service import AdmittedRun, ChatService, Start, admitted, retried, started
from services.errors import EngineFailed, PromptTooLong, UnsupportedParameter

MIN_PORTION_CHARS = 200
MAX_CHARS_PER_TOKEN = 8
MARGIN = 0.9  # a portion's tokens are estimated from those of the whole


@dataclass(frozen=True, slots=True)
class Portion:
    """The run that extends the summary by a portion of the conversation."""

    events: AsyncGenerator[Event, None]
    reply: Reply


class SummaryService:
    def __init__(self, chat: ChatService) -> None:
        self._chat = chat

    async def begin(self, transcript: str, prompt: SummaryPrompt, owner: str) -> "SummaryWriter":
        prompt = await self._with_least_thinking(prompt, owner)
        return SummaryWriter(self._chat, transcript, prompt, owner)

    async def _with_least_thinking(self, prompt: SummaryPrompt, owner: str) -> SummaryPrompt:
        """No thinking, or little, or as much as the model likes: some models take neither switch nor budget."""
        for tried in (replace(prompt, effort="none", max_thinking_tokens=0), replace(prompt, effort="minimal")):
            try:
                await self._chat.prompt_of(tried.request(""), owner)
            except UnsupportedParameter:
                continue
            return tried
        return prompt


class SummaryWriter:
    """A summary in the making; to be closed."""

    def __init__(self, chat: ChatService, transcript: str, prompt: SummaryPrompt, owner: str) -> None:
        self.text = ""
        self.finish = Finish("stop", 0, 0)  # with the tokens of all portions
        self._chat = chat
        self._rest = transcript
        self._prompt = prompt
        self._owner = owner
        self._portion: Portion | None = None

    async def start(self) -> Head:
        """Begins with the first portion, which may be refused. Later ones wait for room."""
        size = await self._portion_size()
        return self._begin(await started(self._start(size)()), size)

    async def write(self) -> bool:
        """Goes on to the next sign of progress: a piece of text, or another portion. False at the end."""
        assert self._portion
        async for event in self._portion.events:
            self._portion.reply.add(event)
            if isinstance(event, Text):
                return True
        reply = self._portion.reply
        self.text, self.finish = _text_of(reply), _add_tokens(self.finish, reply)
        if not self._rest:
            return False
        size = await retried(self._portion_size)
        self._begin(await admitted(self._start(size)), size)
        return True

    async def aclose(self) -> None:
        if self._portion:
            await self._portion.events.aclose()

    def _start(self, size: int) -> Start:
        return partial(self._chat.run, self._prompt.request(self._rest[:size], self.text), self._owner)

    def _begin(self, run: AdmittedRun, size: int) -> Head:
        self._rest = self._rest[size:]
        self._portion = Portion(run.events, Reply(run.head))
        return run.head

    async def _portion_size(self) -> int:
        """Characters that fit the context."""
        length = await self._chat.max_length(self._prompt.model)
        room = length - self._prompt.max_tokens - self._prompt.max_thinking_tokens
        size = min(len(self._rest), MAX_CHARS_PER_TOKEN * length)
        while (tokens := await self._count(size)) > room:
            if size <= MIN_PORTION_CHARS:
                raise PromptTooLong(tokens, room, param="messages")
            size = portion_end(self._rest, max(MIN_PORTION_CHARS, int(MARGIN * size * room / tokens)))
        return size

    async def _count(self, size: int) -> int:
        return await self._chat.count(self._prompt.request(self._rest[:size], self.text), self._owner)


def _text_of(reply: Reply) -> str:
    if not (text := reply.text.strip()):
        raise EngineFailed("The model has written no summary of the conversation")
    return text


def _add_tokens(used: Finish, reply: Reply) -> Finish:
    finish = reply.choices[0].finish
    assert finish is not None
    return replace(
        used,
        prompt_tokens=used.prompt_tokens + finish.prompt_tokens,
        cached_tokens=used.cached_tokens + finish.cached_tokens,
        completion_tokens=used.completion_tokens + finish.completion_tokens,
        reasoning_tokens=used.reasoning_tokens + finish.reasoning_tokens,
    )
