"""Events -> OpenAI's chunks, or the one completion they add up to."""

import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from schemas.chat_schema import (
    AssistantMessage,
    CalledFunction,
    ChatCompletion,
    ChatCompletionChunk,
    ChatCompletionRequest,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    CompletionTokensDetails,
    CompletionUsage,
    ConversationRef,
    Delta,
    FunctionDelta,
    MessageToolCall,
    PromptTokensDetails,
    Token,
    ToolCallDelta,
    TopToken,
)
from schemas.completion_schema import CompletionRequest
from schemas.generation_schema import Metadata
from services.chat.events import (
    Arguments,
    Event,
    Finish,
    Head,
    Reasoning,
    Reply,
    Said,
    SaidCall,
    Spoken,
    Text,
    ToolCall,
    head_of,
)
from services.chat.padding import padding
from services.engine.base import TokenLogprob

UNLIKELY = -9999.0  # in place of minus infinity, which JSON does not have


@dataclass(frozen=True, slots=True)
class Wanted:
    """What an answer has besides its text, if it is asked for."""

    usage: bool = False  # in a last chunk
    usage_so_far: bool = False  # in each
    token_ids: bool = False
    logprobs: bool = False
    padding: bool = False


def wanted(request: ChatCompletionRequest | CompletionRequest) -> Wanted:
    options = request.stream_options
    return Wanted(
        usage=options is not None and options.include_usage,
        usage_so_far=options is not None and options.continuous_usage_stats,
        token_ids=request.return_token_ids,
        logprobs=request.logprobs is not None and request.logprobs is not False,
        padding=options is not None and options.include_obfuscation,
    )


async def chunks(
    run: AsyncIterator[Event], wanted: Wanted, clock: Callable[[], float] = time.perf_counter
) -> AsyncGenerator[ChatCompletionChunk, None]:
    """The role of each choice first, then what is said, then each finish alone; the usage last, or null on others."""
    head = await head_of(run)
    encoder = _Encoder(head, wanted, clock)
    for index in range(head.n):
        yield encoder.chunk(index, Delta(role="assistant", content="", refusal=None))
    async for event in run:
        if not isinstance(event, Head):
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
        self._completion_tokens = Counter[int]()  # by choice; once it is finished, as the finish says
        self._reasoning_tokens = Counter[int]()
        self._cached_tokens = 0
        self._finished = 0

    @property
    def is_whole(self) -> bool:
        return self._finished == self._head.n

    def event(self, event: Spoken | Finish) -> ChatCompletionChunk:
        delta = _delta(event)
        if self._wanted.token_ids and event.token_ids:
            delta.token_ids = list(event.token_ids)
        self._completion_tokens[event.index] += len(event.token_ids)
        match event:
            case Finish():
                self._finished += 1
                self._completion_tokens[event.index] = event.completion_tokens
                self._reasoning_tokens[event.index] = event.reasoning_tokens
                if event.index == 0:
                    self._cached_tokens = event.cached_tokens
                return self.chunk(event.index, delta, event)
            case Reasoning():
                self._reasoning_tokens[event.index] += len(event.token_ids)
        return self.chunk(event.index, delta, logprobs=event.logprobs)

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
        if self._wanted.padding:
            chunk.obfuscation = padding(choice)
        return chunk

    def last(self) -> ChatCompletionChunk:
        return self._frame.model_copy(update={"usage": self._usage()})

    def _usage(self) -> CompletionUsage:
        return usage(self._head, self._completion_tokens.total(), self._cached_tokens, self._reasoning_tokens.total())


def _delta(event: Spoken | Finish) -> Delta:
    match event:
        case Text(text):
            return Delta(content=text)
        case Reasoning(text):
            return Delta(reasoning_content=text)
        case ToolCall(id, name, call):  # each once: clients add strings up
            function = FunctionDelta(name=name, arguments="")
            return Delta(tool_calls=[ToolCallDelta(index=call, id=id, type="function", function=function)])
        case Arguments(text, call):
            return Delta(tool_calls=[ToolCallDelta(index=call, function=FunctionDelta(arguments=text))])
        case Finish():
            return Delta()


def completion(reply: Reply, metadata: Metadata, wanted: Wanted) -> ChatCompletion:
    head = reply.head
    assert head
    finishes = [said.finish for said in reply.choices if said.finish]
    completion_tokens = sum(finish.completion_tokens for finish in finishes)
    reasoning_tokens = sum(finish.reasoning_tokens for finish in finishes)
    return ChatCompletion(
        id=head.id,
        created=head.created,
        model=head.model,
        choices=[_choice(index, said, wanted) for index, said in enumerate(reply.choices)],
        usage=usage(head, completion_tokens, finishes[0].cached_tokens, reasoning_tokens),
        system_fingerprint=head.fingerprint,
        service_tier=head.service_tier,
        metadata=metadata or None,
        conversation=_conversation(head),
    )


def _choice(index: int, said: Said, wanted: Wanted) -> Choice:
    assert said.finish
    return Choice(
        index=index,
        message=_message(said, wanted),
        logprobs=_logprobs(said.logprobs) if wanted.logprobs else None,
        finish_reason=said.finish.reason,
    )


def _message(said: Said, wanted: Wanted) -> AssistantMessage:
    message = AssistantMessage(content=said.text or (None if said.calls else ""))
    if said.reasoning:
        message.reasoning_content = said.reasoning
    if said.calls:
        message.tool_calls = [_call(call) for call in said.calls]
    if wanted.token_ids:
        message.token_ids = said.token_ids
    return message


def _call(call: SaidCall) -> MessageToolCall:
    return MessageToolCall(id=call.id, function=CalledFunction(name=call.name, arguments=call.arguments))


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
    if head.service_tier:
        frame.service_tier = head.service_tier
    if head.conversation_id:
        frame.conversation = _conversation(head)
    return frame


def _conversation(head: Head) -> ConversationRef | None:
    return ConversationRef(id=head.conversation_id) if head.conversation_id else None


def usage(head: Head, completion_tokens: int, cached_tokens: int, reasoning_tokens: int = 0) -> CompletionUsage:
    """A prompt of several choices is counted once, and so is what of it the first of them found in the cache."""
    return CompletionUsage(
        prompt_tokens=head.prompt_tokens,
        completion_tokens=completion_tokens,
        total_tokens=head.prompt_tokens + completion_tokens,
        prompt_tokens_details=PromptTokensDetails(cached_tokens=cached_tokens, truncated_tokens=head.truncated),
        completion_tokens_details=CompletionTokensDetails(reasoning_tokens=reasoning_tokens),
    )
