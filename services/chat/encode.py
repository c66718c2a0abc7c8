"""Events -> OpenAI's chunks, or the one completion they add up to."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.chat_schema import (
    AssistantMessage,
    AssistantTokens,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    CompletionUsage,
    ConversationRef,
    Delta,
    PromptTokensDetails,
    Token,
    TopToken,
)
from schemas.completion_schema import CompletionRequest
from schemas.generation_schema import Metadata
from services.chat.events import Event, Finish, Head, Reply, Said, Text, head_of
from services.engine.base import TokenLogprob

UNLIKELY = -9999.0  # in place of minus infinity, which JSON does not have


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an answer has besides its text, if it is asked for."""

    usage: bool = False  # in a last chunk
    usage_so_far: bool = False  # in each
    token_ids: bool = False
    logprobs: bool = False


def wanted(request: ChatCompletionRequest | CompletionRequest) -> Wanted:
    options = request.stream_options
    return Wanted(
        usage=options is not None and options.include_usage,
        usage_so_far=options is not None and options.continuous_usage_stats,
        token_ids=request.return_token_ids,
        logprobs=request.logprobs is not None and request.logprobs is not False,
    )


async def chunks(
    run: AsyncIterator[Event], wanted: Wanted, clock: Callable[[], float] = time.perf_counter
) -> AsyncGenerator[ChatCompletionChunk, None]:
    """The role of each choice first, then text, then each finish alone; the usage last, or a null on each but that."""
    head = await head_of(run)
    encoder = _Encoder(head, wanted, clock)
    for index in range(head.n):
        yield encoder.chunk(index, Delta(role="assistant", content="", refusal=None))
    async for event in run:
        if isinstance(event, Text | Finish):
            yield encoder.event(event)
    if wanted.usage and encoder.is_whole:
        yield encoder.last()


class _Encoder:
    """Of one answer: what its chunks share, and what was used so far."""

    def __init__(self, head: Head, wanted: Wanted, clock: Callable[[], float]) -> None:
        self._head = head
        self._wanted = wanted
        self._clock = clock
        self._frame = _frame(head)
        self._completion_tokens = 0
        self._cached_tokens = 0
        self._finished = 0

    @property
    def is_whole(self) -> bool:
        return self._finished == self._head.n

    def event(self, event: Text | Finish) -> ChatCompletionChunk:
        delta = Delta(content=event.text) if isinstance(event, Text) else Delta()
        if self._wanted.token_ids and event.token_ids:
            delta.token_ids = list(event.token_ids)
        self._completion_tokens += len(event.token_ids)
        if isinstance(event, Text):
            return self.chunk(event.index, delta, logprobs=event.logprobs)
        self._finished += 1
        if event.index == 0:
            self._cached_tokens = event.cached_tokens
        return self.chunk(event.index, delta, event)

    def chunk(
        self, index: int, delta: Delta, finish: Finish | None = None, logprobs: Sequence[TokenLogprob] = ()
    ) -> ChatCompletionChunk:
        choice = ChunkChoice(
            index=index,
            delta=delta,
            logprobs=_logprobs(logprobs) if logprobs else None,
            finish_reason=finish.reason if finish else None,
            arrival_time=round(self._clock() - self._head.arrived, 6),
        )
        chunk = self._frame.model_copy(update={"choices": [choice]})
        if self._wanted.usage_so_far:
            chunk.usage = self._usage()
        elif self._wanted.usage:
            chunk.usage = None  # set, so that it is sent
        return chunk

    def last(self) -> ChatCompletionChunk:
        return self._frame.model_copy(update={"usage": self._usage()})

    def _usage(self) -> CompletionUsage:
        return usage(self._head, self._completion_tokens, self._cached_tokens)


def completion(reply: Reply, metadata: Metadata, wanted: Wanted) -> ChatCompletion:
    head = reply.head
    assert head
    finishes = [said.finish for said in reply.choices if said.finish]
    completion_tokens = sum(finish.completion_tokens for finish in finishes)
    return ChatCompletion(
        id=head.id,
        created=head.created,
        model=head.model,
        choices=[_choice(index, said, wanted) for index, said in enumerate(reply.choices)],
        usage=usage(head, completion_tokens, finishes[0].cached_tokens),
        system_fingerprint=head.fingerprint,
        metadata=metadata or None,
        conversation=_conversation(head),
    )


def _choice(index: int, said: Said, wanted: Wanted) -> Choice:
    assert said.finish
    plain = AssistantMessage(content=said.text)
    return Choice(
        index=index,
        message=AssistantTokens(content=said.text, token_ids=said.token_ids) if wanted.token_ids else plain,
        logprobs=_logprobs(said.logprobs) if wanted.logprobs else None,
        finish_reason=said.finish.reason,
    )


def _logprobs(tokens: Iterable[TokenLogprob]) -> ChoiceLogprobs:
    content = [
        Token(**_weighed(token), top_logprobs=[TopToken(**_weighed(each)) for each in token.top]) for token in tokens
    ]
    return ChoiceLogprobs(content=content, refusal=None)


def _weighed(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.text, "logprob": max(token.logprob, UNLIKELY), "bytes": list(token.raw)}


def _frame(head: Head) -> ChatCompletionChunk:
    """A chunk with what all chunks of this answer share, and no choice yet."""
    frame = ChatCompletionChunk(
        id=head.id,
        object="chat.completion.chunk",
        created=head.created,
        model=head.model,
        choices=[],
        system_fingerprint=head.fingerprint,
    )
    if head.conversation_id:
        frame.conversation = _conversation(head)
    return frame


def _conversation(head: Head) -> ConversationRef | None:
    return ConversationRef(id=head.conversation_id) if head.conversation_id else None


def usage(head: Head, completion_tokens: int, cached_tokens: int) -> CompletionUsage:
    """A prompt of several choices is counted once, and so is what of it the first of them found in the cache."""
    return CompletionUsage(
        prompt_tokens=head.prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=head.prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached_tokens, truncated_tokens=head.truncated),
    )
