"""Spans of answers, with the attributes of OpenTelemetry's semantic conventions for generative AI.

A run of events is wrapped, so that what does not trace does not pay. Steps of the run find its span as the current one.
Texts are recorded only where the operator has asked for them.
"""

import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import orjson

from schemas.chat_schema import ChatCompletionRequest, ChatMessage
from schemas.completion_schema import CompletionRequest
from schemas.embeddings_schema import EmbeddingRequest
from schemas.generation_schema import GenerationRequest
from schemas.tool_schema import AnyToolCall, CustomToolCall, MessageToolCall
from services.chat.events import (
    Arguments,
    ChoiceReply,
    Compacted,
    Compacting,
    Event,
    Finish,
    Head,
    Reasoning,
    Reply,
    Text,
    ToolCall,
)
from services.tracing import Attributes, Span, Value, current, ending, step, under

PROVIDER = "parley"
NANO = 1_000_000_000
# parameters of requests that have an attribute of the same name
SAMPLED = ("temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty", "seed")


def traced_chat(run: AsyncGenerator[Event, None], request: ChatCompletionRequest) -> AsyncGenerator[Event, None]:
    parent = current()
    if not parent.is_recording:
        return run
    texts = _messages(request.messages) if parent.records_content else ()
    return _traced(run, parent, "chat", _generation(request), texts)


def traced_completion(run: AsyncGenerator[Event, None], request: CompletionRequest) -> AsyncGenerator[Event, None]:
    parent = current()
    if not parent.is_recording:
        return run
    prompts = [each for each in request.prompts if isinstance(each, str)] if parent.records_content else ()
    texts = [{"role": "user", "parts": [_text(prompt)]} for prompt in prompts]
    return _traced(run, parent, "text_completion", _generation(request), texts)


@contextmanager
def traced_embedding(request: EmbeddingRequest) -> Iterator[Span]:
    """`measured` sets what it has come to."""
    parameters: dict[str, Value] = {"gen_ai.request.encoding_formats": [request.encoding_format]}
    if request.dimensions is not None:
        parameters["gen_ai.embeddings.dimension.count"] = request.dimensions
    with step("embeddings", _operation("embeddings", request.model) | parameters) as span:
        yield span


@contextmanager
def traced_rerank(model: str | None) -> Iterator[Span]:
    with step("rerank", _operation("rerank", model)) as span:
        yield span


def measured(span: Span, operation: str, model: str, tokens: int) -> None:
    if span.is_recording:
        span.rename(f"{operation} {model}")
        span.set({"gen_ai.response.model": model, "gen_ai.usage.input_tokens": tokens})


async def _traced(
    run: AsyncGenerator[Event, None],
    parent: Span,
    operation: str,
    attributes: Attributes,
    texts: Sequence[Mapping[str, Any]],
) -> AsyncGenerator[Event, None]:
    with ending(parent.child(operation, attributes)) as span:
        if texts:
            span.set({"gen_ai.input.messages": _json(texts)})
        trace = _AnswerTrace(span, operation)
        try:
            while True:
                with under(span):  # only while the run has its turn: its reader's steps are not the run's
                    event = await anext(run, None)
                if event is None:
                    break
                trace.add(event)
                yield event
        finally:
            trace.end()
            with under(span):
                await run.aclose()


class _AnswerTrace:
    def __init__(self, span: Span, operation: str) -> None:
        self._span = span
        self._operation = operation
        self._started = time.perf_counter()
        self._head: Head | None = None
        self._has_output = False
        self._call: Span | None = None  # the tool call that is being written
        self._finishes: dict[int, Finish] = {}
        self._reply = Reply() if span.records_content else None

    def add(self, event: Event) -> None:
        if self._reply:
            self._reply.add(event)
        match event:
            case Head():
                self._add_head(event)
            case Finish():
                self._end_call()
                self._finishes[event.index] = event
                self._add_phases(event)
            case ToolCall():
                self._output()
                self._end_call()
                self._call = self._span.child(f"tool_call {event.name}", _call_attributes(event))
            case Text() | Reasoning() | Arguments():
                self._output()
            case Compacting() | Compacted():
                pass

    def _add_head(self, head: Head) -> None:
        self._head = head
        self._span.rename(f"{self._operation} {head.model}")
        attributes: dict[str, Value] = {
            "gen_ai.response.id": head.id,
            "gen_ai.response.model": head.model,
            "gen_ai.usage.input_tokens": head.prompt_tokens,
            "openai.response.system_fingerprint": head.fingerprint,
        }
        if head.conversation_id:
            attributes["gen_ai.conversation.id"] = head.conversation_id
        if head.service_tier:
            attributes["openai.response.service_tier"] = head.service_tier
        if head.n != 1:
            attributes["gen_ai.request.choice.count"] = head.n
        self._span.set(attributes)

    def _output(self) -> None:
        if not self._has_output:
            self._has_output = True
            self._span.set({"gen_ai.response.time_to_first_chunk": time.perf_counter() - self._started})

    def _end_call(self) -> None:
        if self._call:
            self._call.end()
            self._call = None

    def _add_phases(self, finish: Finish) -> None:
        """The engine's own measurement, from the moment at which it got the job: a slow reader does not lengthen it."""
        if finish.times is None or self._head is None or not self._head.submitted:
            return
        at = time.time_ns() - int((time.perf_counter() - self._head.submitted) * NANO)
        choice: Attributes = {"parley.choice.index": finish.index}
        for name, seconds in (
            ("queue", finish.times.queued),
            ("prefill", finish.times.prefill),
            ("decode", finish.times.decode),
        ):
            phase = self._span.child(name, choice, started=at)
            at += int(seconds * NANO)
            phase.end(at)

    def end(self) -> None:
        """On every path. Choices that were cut short have no Finish."""
        self._end_call()
        if self._head and self._finishes:
            self._span.set(_usage(self._head, self._finishes))
        if self._reply and self._reply.head:
            self._span.set({"gen_ai.output.messages": _json(list(map(_output_message, self._reply.choices)))})


def _usage(head: Head, finishes: Mapping[int, Finish]) -> Attributes:
    ended = finishes.values()
    # choices of one prompt share it
    cached = sum(finish.cached_tokens for finish in ended if finish.index % head.shares == 0)
    found: dict[str, Value] = {
        "gen_ai.response.finish_reasons": [finishes[index].reason for index in sorted(finishes)],
        "gen_ai.usage.output_tokens": sum(finish.completion_tokens for finish in ended),
        "gen_ai.usage.cache_read.input_tokens": cached,
    }
    if reasoning := sum(finish.reasoning_tokens for finish in ended):
        found["gen_ai.usage.reasoning.output_tokens"] = reasoning
    return found


def _operation(name: str, model: str | None) -> dict[str, Value]:
    named: dict[str, Value] = {"gen_ai.request.model": model} if model else {}
    return {"gen_ai.operation.name": name, "gen_ai.provider.name": PROVIDER, **named}


def _generation(request: ChatCompletionRequest | CompletionRequest) -> Attributes:
    is_chat = isinstance(request, ChatCompletionRequest)
    found = _operation("chat" if is_chat else "text_completion", request.model)
    found |= _sampling(request)
    max_tokens = request.max_tokens
    if isinstance(request, ChatCompletionRequest):
        max_tokens = request.max_completion_tokens or max_tokens
        if request.service_tier:
            found["openai.request.service_tier"] = request.service_tier
    if max_tokens is not None:
        found["gen_ai.request.max_tokens"] = max_tokens
    return found


def _sampling(request: GenerationRequest) -> dict[str, Value]:
    found: dict[str, Value] = {
        f"gen_ai.request.{name}": getattr(request, name)
        for name in SAMPLED
        if name in request.model_fields_set and getattr(request, name) is not None
    }
    if request.stream:
        found["gen_ai.request.stream"] = True
    return found


def _call_attributes(call: ToolCall) -> Attributes:
    return {"gen_ai.tool.name": call.name, "gen_ai.tool.call.id": call.id, "gen_ai.tool.type": call.kind}


def _messages(messages: Sequence[ChatMessage]) -> list[dict[str, Any]]:
    return [{"role": message.role, "parts": _parts(message)} for message in messages]


def _parts(message: ChatMessage) -> list[dict[str, Any]]:
    if message.role == "tool":
        return [{"type": "tool_call_response", "id": message.tool_call_id, "response": message.content}]
    parts = [{"type": "reasoning", "content": message.reasoning_content}] if message.reasoning_content else []
    match message.content:
        case str() as text:
            parts.append(_text(text))
        case list() as given:  # an image is named, and not copied
            parts += [_text(part["text"]) if part["type"] == "text" else {"type": part["type"]} for part in given]
    return [*parts, *map(_call, message.tool_calls)]


def _call(call: AnyToolCall) -> dict[str, Any]:
    match call:
        case CustomToolCall(id=id, custom=called):
            return {"type": "tool_call", "id": id, "name": called.name, "arguments": called.input}
        case MessageToolCall(id=id, function=called):
            return {"type": "tool_call", "id": id, "name": called.name, "arguments": called.arguments}


def _output_message(choice: ChoiceReply) -> dict[str, Any]:
    parts = [{"type": "reasoning", "content": choice.reasoning}] if choice.reasoning else []
    if choice.text:
        parts.append(_text(choice.text))
    calls = [
        {"type": "tool_call", "id": call.id, "name": call.name, "arguments": call.arguments} for call in choice.calls
    ]
    reason = choice.finish.reason if choice.finish else "error"
    return {"role": "assistant", "parts": [*parts, *calls], "finish_reason": reason}


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "content": text}


def _json(value: object) -> str:
    return orjson.dumps(value, default=str).decode()
