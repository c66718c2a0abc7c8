"""What the model says -> Ollama's lines, or the one that they add up to."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from app.spec import Arguments, Event, Finish, Head, Reasoning, Text, ToolCall, as_object, token_logprobs
from schemas.chat_answer_schema import Token
from schemas.ollama_answer_schema import (
    NANOSECONDS,
    AnswerFunction,
    AnswerMessage,
    AnswerMetrics,
    AnswerToolCall,
    ChatLine,
    GenerateLine,
)


@dataclass(slots=True)
class PartialAnswer:
    """Of an answer, or all of it."""

    text: str = ""
    thinking: str = ""
    calls: list[AnswerToolCall] = field(default_factory=list)
    logprobs: list[Token] = field(default_factory=list)
    metrics: AnswerMetrics | None = None

    def __add__(self, other: "PartialAnswer") -> "PartialAnswer":
        return PartialAnswer(
            self.text + other.text,
            self.thinking + other.thinking,
            self.calls + other.calls,
            self.logprobs + other.logprobs,
            other.metrics,
        )

    def chat_line(self, model: str) -> ChatLine:
        message = AnswerMessage(content=self.text, thinking=self.thinking or None, tool_calls=self.calls or None)
        return ChatLine(message=message, **self._frame(model))

    def generate_line(self, model: str) -> GenerateLine:
        return GenerateLine(response=self.text, thinking=self.thinking or None, **self._frame(model))

    def _frame(self, model: str) -> dict[str, Any]:
        metrics = self.metrics.model_dump() if self.metrics else {}
        return {
            "model": model,
            "created_at": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            "done": self.metrics is not None,
            "logprobs": self.logprobs or None,
            **metrics,
        }


class AnswerEncoder:
    """Of one answer. A call is one part, once all of its arguments are there."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._arrived = clock()
        self._call: ToolCall | None = None
        self._arguments = ""

    def parts(self, event: Event) -> Iterator[PartialAnswer]:
        if self._call and not isinstance(event, Arguments):
            yield PartialAnswer(calls=[_call(self._call, self._arguments)])
            self._call, self._arguments = None, ""
        match event:
            case Head():
                self._arrived = event.arrived
            case Text(text, logprobs=logprobs) if text or logprobs:
                yield PartialAnswer(text, logprobs=token_logprobs(logprobs))
            case Reasoning(text, logprobs=logprobs) if text or logprobs:
                yield PartialAnswer(thinking=text, logprobs=token_logprobs(logprobs))
            case ToolCall():
                self._call = event
            case Arguments(text):
                self._arguments += text
            case Finish():
                yield PartialAnswer(metrics=_metrics(event, self._clock() - self._arrived))


def _call(call: ToolCall, arguments: str) -> AnswerToolCall:
    function = AnswerFunction(name=call.name, arguments=as_object(arguments), index=call.call)
    return AnswerToolCall(id=call.id, function=function)


def _metrics(finish: Finish, seconds: float) -> AnswerMetrics:
    metrics = AnswerMetrics(
        done_reason="length" if finish.reason == "length" else "stop",
        total_duration=_nanoseconds(seconds),
        prompt_eval_count=finish.prompt_tokens,
        eval_count=finish.completion_tokens,
    )
    if times := finish.times:
        metrics.prompt_eval_duration = _nanoseconds(times.prefill)
        metrics.eval_duration = _nanoseconds(times.decode)
        metrics.load_duration = _nanoseconds(seconds - times.queued - times.prefill - times.decode)
    return metrics


def _nanoseconds(seconds: float) -> int:
    return max(0, round(seconds * NANOSECONDS))
