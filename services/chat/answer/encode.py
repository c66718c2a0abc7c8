"""Events -> OpenAI's chunks, or the one completion they add up to."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from schemas.chat_answer_schema import (
    AssistantMessage,
    ChatCompletion,
    ChatCompletionChunk,
    Choice,
    ChoiceLogprobs,
    ChunkChoice,
    ConversationRef,
    CustomDelta,
    Delta,
    FunctionDelta,
    ToolCallDelta,
)
from schemas.chat_schema import ChatCompletionRequest
from schemas.completion_schema import Completion, CompletionChoice, CompletionRequest
from schemas.generation_schema import Metadata
from schemas.tool_schema import CalledCustom, CalledFunction, CustomToolCall, MessageToolCall
from services.chat.answer import logprobs
from services.chat.answer.padding import padding
from services.chat.answer.usage import UsageCounter, usage_of
from services.chat.events import (
    Arguments,
    ChoiceReply,
    Compacted,
    Compacting,
    Event,
    Finish,
    Head,
    OutputEvent,
    Reasoning,
    Reply,
    ReplyToolCall,
    Text,
    ToolCall,
)
from services.engine.base import TokenLogprob


@dataclass(frozen=True, slots=True)
class ChunkOptions:
    """What an answer has besides its text, if it is asked for."""

    usage: bool = False  # in a last chunk
    usage_so_far: bool = False  # in each
    token_ids: bool = False
    logprobs: bool = False
    logprobs_by_id: bool = False  # tokens are called by their ids in them
    padding: bool = False


def chunk_options(request: ChatCompletionRequest | CompletionRequest) -> ChunkOptions:
    options = request.stream_options
    return ChunkOptions(
        usage=options is not None and options.include_usage,
        usage_so_far=options is not None and options.continuous_usage_stats,
        token_ids=request.return_token_ids,
        logprobs=request.logprobs is not None and request.logprobs is not False,
        logprobs_by_id=isinstance(request, CompletionRequest) and request.return_tokens_as_token_ids,
        padding=options is not None and options.include_obfuscation,
    )


class ChunkEncoder:
    """Of one answer: the role of each choice first, then what is generated, then each finish alone; the usage last, or
    null on all others."""

    def __init__(self, options: ChunkOptions, clock: Callable[[], float] = time.perf_counter) -> None:
        self._options = options
        self._clock = clock

    def chunks(self, event: Event) -> list[ChatCompletionChunk]:
        if isinstance(event, Compacting | Compacted):
            return []
        if not isinstance(event, Head):
            return [self._event(event)]
        self._head = event
        self._frame = _frame(event)
        self._usage = UsageCounter(event)
        return [self._chunk(index, Delta(role="assistant", content="", refusal=None)) for index in range(event.n)]

    def end(self) -> list[ChatCompletionChunk]:
        """After the last event."""
        return [self._last()] if self._options.usage and self._usage.is_whole else []

    def _event(self, event: OutputEvent | Finish) -> ChatCompletionChunk:
        delta = _delta(event)
        if self._options.token_ids and event.token_ids:
            delta.token_ids = list(event.token_ids)
        self._usage.add(event)
        match event:
            case Finish():
                return self._chunk(event.index, delta, event)
            case _:
                return self._chunk(event.index, delta, logprobs=event.logprobs)

    def _chunk(
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
        add_options(chunk, choice, self._options, self._usage)
        return chunk

    def _last(self) -> ChatCompletionChunk:
        return self._frame.model_copy(update={"usage": self._usage.usage()})


def add_options(
    chunk: ChatCompletionChunk | Completion,
    choice: ChunkChoice | CompletionChoice,
    options: ChunkOptions,
    usage: UsageCounter,
) -> None:
    """With what is sent beside its one choice, if it is asked for."""
    if options.usage_so_far:
        chunk.usage = usage.usage()
    elif options.usage:
        chunk.usage = None  # set, so that it is sent
    if options.padding:
        chunk.obfuscation = padding(choice)


def _delta(event: OutputEvent | Finish) -> Delta:
    match event:
        case Text(text):
            return Delta(content=text)
        case Reasoning(text):
            return Delta(reasoning_content=text)
        case ToolCall(id, name, call, kind="custom"):
            custom = CustomDelta(name=name, input="")
            return Delta(tool_calls=[ToolCallDelta(index=call, id=id, type="custom", custom=custom)])
        case ToolCall(id, name, call):  # each once: clients add strings up
            function = FunctionDelta(name=name, arguments="")
            return Delta(tool_calls=[ToolCallDelta(index=call, id=id, type="function", function=function)])
        case Arguments(text, call, kind="custom"):
            return Delta(tool_calls=[ToolCallDelta(index=call, custom=CustomDelta(input=text))])
        case Arguments(text, call):
            return Delta(tool_calls=[ToolCallDelta(index=call, function=FunctionDelta(arguments=text))])
        case Finish():
            return Delta()


def completion(reply: Reply, metadata: Metadata, options: ChunkOptions) -> ChatCompletion:
    head = reply.head
    assert head
    return ChatCompletion(
        id=head.id,
        created=head.created,
        model=head.model,
        choices=[_choice(index, choice, options) for index, choice in enumerate(reply.choices)],
        usage=usage_of(reply),
        system_fingerprint=head.fingerprint,
        service_tier=head.service_tier,
        metadata=metadata or None,
        conversation=conversation_ref(head.conversation_id),
    )


def _choice(index: int, reply: ChoiceReply, options: ChunkOptions) -> Choice:
    assert reply.finish
    return Choice(
        index=index,
        message=_message(reply, options),
        logprobs=_logprobs(reply.logprobs) if options.logprobs else None,
        finish_reason=reply.finish.reason,
    )


def _message(reply: ChoiceReply, options: ChunkOptions) -> AssistantMessage:
    message = AssistantMessage(content=reply.text or (None if reply.calls else ""))
    if reply.reasoning:
        message.reasoning_content = reply.reasoning
    if reply.calls:
        message.tool_calls = [_call(call) for call in reply.calls]
    if options.token_ids:
        message.token_ids = reply.token_ids
    return message


def _call(call: ReplyToolCall) -> MessageToolCall | CustomToolCall:
    if call.kind == "custom":
        return CustomToolCall(id=call.id, custom=CalledCustom(name=call.name, input=call.arguments))
    return MessageToolCall(id=call.id, function=CalledFunction(name=call.name, arguments=call.arguments))


def _logprobs(tokens: Iterable[TokenLogprob]) -> ChoiceLogprobs:
    return ChoiceLogprobs(content=logprobs.tokens(tokens), refusal=None)


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
        frame.conversation = conversation_ref(head.conversation_id)
    return frame


def conversation_ref(conversation_id: str | None) -> ConversationRef | None:
    return ConversationRef(id=conversation_id) if conversation_id else None
