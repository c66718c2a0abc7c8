"""Turns a stored answer back into the events of a stream."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from typing import Any, cast

from schemas.chat_schema import ChatMessage
from services.chat import call_items
from services.chat.events import Compacted, Event, Finish, Head, Reasoning, Reply, Text
from services.chat.items import Item, reasoning_text
from services.engine.base import TokenLogprob
from services.history.answer import Answer


class Replay:
    """The answer of an earlier request with the same Idempotency-Key. Nothing is generated."""

    def __init__(
        self, found: Answer, history: Sequence[ChatMessage], finished: Callable[[], Awaitable[Answer]]
    ) -> None:
        self.id, self.reply_id = found.id, found.id[-32:]
        self.created_at, self.completed_at = found.created_at, found.completed_at
        self.conversation_id = found.conversation_id
        self.history = history  # that the answer continued
        self._finished = finished

    async def events(self) -> AsyncGenerator[Event, None]:
        """Waits for the complete answer; raises Conflict if it never completes."""
        answer = await self._finished()
        self.completed_at = answer.completed_at
        for event in events(answer):
            yield event


def reply_of(answer: Answer) -> Reply:
    folded = Reply()
    for event in events(answer):
        folded.add(event)
    return folded


def events(answer: Answer) -> Iterator[Event]:
    usage = answer.usage or {}
    yield Head(
        id=answer.id,
        created=int(answer.created_at),
        model=answer.model,
        fingerprint=answer.fingerprint or "",
        conversation_id=answer.conversation_id,
        prompt_tokens=usage.get("prompt_tokens", 0),
        truncated=usage.get("truncated_tokens"),
        service_tier=answer.request.get("service_tier"),
        n=len(answer.output),
    )
    for index, items in enumerate(answer.output):
        yield from _output_events(items, index, _logprobs(answer.choices[index]))
    for index, choice in enumerate(answer.choices):
        yield _finish(answer, choice, index)


def _output_events(items: tuple[Item, ...], index: int, logprobs: tuple[TokenLogprob, ...]) -> Iterator[Event]:
    call = 0
    for item in items:
        match item["type"]:
            case "message":
                text = "".join(part["text"] for part in item["content"] if part["type"] == "output_text")
                yield Text(text, logprobs=logprobs, index=index)
                logprobs = ()
            case "reasoning":
                yield Reasoning(reasoning_text(item), index=index)
            case "compaction":
                yield Compacted(item, index=index)
            case kind if kind in call_items.KINDS:
                yield from call_items.events(item, call, index)
                call += 1


def _logprobs(choice: dict[str, Any]) -> tuple[TokenLogprob, ...]:
    return tuple(_logprob(each, tuple(map(_logprob, each["top_logprobs"]))) for each in choice.get("logprobs", ()))


def _logprob(token: dict[str, Any], top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
    return TokenLogprob(token["token"], bytes(token["bytes"]), token["logprob"], top)


def _finish(answer: Answer, choice: dict[str, Any], index: int) -> Finish:
    """The first choice carries the usage of all choices. An interrupted one has no finish reason of its own."""
    usage = answer.usage or {}
    used = usage if index == 0 else {}
    return Finish(
        cast("Any", choice["finish_reason"] or "length"),
        usage.get("prompt_tokens", 0),
        used.get("completion_tokens", 0),
        used.get("cached_tokens", 0),
        reasoning_tokens=used.get("reasoning_tokens", 0),
        index=index,
    )
