"""Writes summaries of conversations with the served model, through the chat pipeline.

A conversation longer than the model's context is read in portions; each request extends the summary so far by one.
"""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import partial

from schemas.chat_schema import ChatCompletionRequest
from services.chat.compaction.summary_prompt import SummaryPrompt
from services.chat.compaction.transcript import portion_end
from services.chat.events import Compacting, Event, Finish, Head, Reply, Text
from services.chat_service import ChatService, retry_overloads
from services.errors import EngineFailed, PromptTooLong, UnsupportedParameter

MIN_PORTION_CHARS = 200
MAX_CHARS_PER_TOKEN = 8
MARGIN = 0.9  # a portion's tokens are estimated from those of the whole


@dataclass(frozen=True, slots=True)
class Summary:
    text: str
    finish: Finish  # with the tokens of all portions


SummaryProgress = Head | Compacting | Summary


class SummaryService:
    def __init__(self, chat: ChatService) -> None:
        self._chat = chat

    async def write(self, transcript: str, prompt: SummaryPrompt, owner: str) -> AsyncGenerator[SummaryProgress, None]:
        """Yields a Head when the first portion is admitted, Compacting as it proceeds, the Summary last. The first
        step raises refusals; later portions wait for room."""
        prompt = await self._with_least_thinking(prompt, owner)
        rest, summary, used = transcript, "", Finish("stop", 0, 0)
        while rest:
            size = await self._portion_size(rest, prompt, summary, owner)
            reply, is_first = Reply(), not summary
            async with aclosing(self._run(prompt.request(rest[:size], summary), owner, waits=not is_first)) as run:
                async for event in run:
                    reply.add(event)
                    if is_first and isinstance(event, Head):
                        yield event
                    if isinstance(event, Head | Text):
                        yield Compacting()
            rest, summary, used = rest[size:], _text_of(reply), _add_tokens(used, reply)
        yield Summary(summary, used)

    def _run(self, request: ChatCompletionRequest, owner: str, *, waits: bool) -> AsyncGenerator[Event, None]:
        run = partial(self._chat.run, request, owner)
        return retry_overloads(run) if waits else run()

    async def _with_least_thinking(self, prompt: SummaryPrompt, owner: str) -> SummaryPrompt:
        """No thinking, or little, or as much as the model likes: some models take neither switch nor budget."""
        for tried in (replace(prompt, effort="none", max_thinking_tokens=0), replace(prompt, effort="minimal")):
            try:
                await self._chat.prompt_of(tried.request(""), owner)
            except UnsupportedParameter:
                continue
            return tried
        return prompt

    async def _portion_size(self, rest: str, prompt: SummaryPrompt, summary: str, owner: str) -> int:
        """Characters of it that fit the context."""
        length = await self._chat.max_length(prompt.model)
        room = length - prompt.max_tokens - prompt.max_thinking_tokens
        size = min(len(rest), MAX_CHARS_PER_TOKEN * length)
        while (tokens := await self._count(prompt.request(rest[:size], summary), owner, length)) > room:
            if size <= MIN_PORTION_CHARS:
                raise PromptTooLong(tokens, room, param="messages")
            size = portion_end(rest, max(MIN_PORTION_CHARS, int(MARGIN * size * room / tokens)))
        return size

    async def _count(self, request: ChatCompletionRequest, owner: str, length: int) -> int:
        try:
            return len(await self._chat.prompt_of(request, owner, limit=length))
        except PromptTooLong as error:
            return error.tokens


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
