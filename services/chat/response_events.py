"""Events -> the events of a streamed response; the plain answer is the `response` of the last of them."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from copy import deepcopy
from typing import Any

from schemas.response_schema import (
    CallEvent,
    IncompleteDetails,
    InputTokensDetails,
    ItemEvent,
    LifeEvent,
    OutputTokensDetails,
    PartEvent,
    Response,
    ResponseError,
    ResponseEvent,
    ResponseUsage,
    StreamEvent,
)
from services.chat.events import Arguments, Finish, Reasoning, Spoken, Text
from services.chat.items import Item
from services.chat.output import Output, status

OVER = ("response.completed", "response.incomplete", "response.failed")
SAYS = {"message": "response.output_text", "reasoning": "response.reasoning_text"}


class ResponseEncoder:
    """Of one response: numbers its events, and keeps it as it stands."""

    def __init__(self, response: Response, output: Output) -> None:
        self.response = response
        self._output = output
        self._open: int | None = None
        self._number = -1

    def created(self) -> ResponseEvent:
        return self._life("response.created")

    def queued(self) -> ResponseEvent:
        return self._life("response.queued")

    def in_progress(self) -> ResponseEvent:
        self.response.status = "in_progress"
        return self._life("response.in_progress")

    def said(self, event: Spoken) -> Iterator[ResponseEvent]:
        index = self._output.add(event)
        if index is None:
            return
        if index != self._open:
            yield from self._close()
            yield from self._begin(index)
        match event:
            case Arguments(text):
                yield self._call(".delta", delta=text)
            case Text(text) | Reasoning(text):
                yield self._delta(event)

    def finished(self, finish: Finish) -> Iterator[ResponseEvent]:
        self.response.usage = _usage(finish)
        if status(finish) == "completed":
            yield from self._end("completed")
        else:
            self.response.incomplete_details = IncompleteDetails(reason="max_output_tokens")
            yield from self._end("incomplete")

    def failed(self, code: str, message: str) -> Iterator[ResponseEvent]:
        """What was said so far stays."""
        self.response.error = ResponseError(code=code, message=message)
        yield from self._end("failed")

    def _end(self, how: str) -> Iterator[ResponseEvent]:
        known = len(self._output.items)
        self._output.end("completed" if how == "completed" else "incomplete")
        for index in range(known, len(self._output.items)):  # an answer without a word
            yield from self._begin(index)
        yield from self._close(last=True)
        self.response.output = deepcopy(self._output.items)
        self.response.status = how  # type: ignore[assignment]  # one of its values
        if how == "completed":
            self.response.completed_at = int(time.time())
        yield self._life(f"response.{how}")

    def _begin(self, index: int) -> Iterator[ResponseEvent]:
        self._open = index
        item = self._item
        yield self._event(ItemEvent, "response.output_item.added", item=_emptied(item))
        if item["type"] in SAYS:
            yield self._event(PartEvent, "response.content_part.added", part=_silent(item["content"][0]))

    def _close(self, *, last: bool = False) -> Iterator[ResponseEvent]:
        if self._open is None:
            return
        item = self._item
        if not last:
            item["status"] = "completed"
        if item["type"] in SAYS:
            part = item["content"][0]
            spoken = {"text": part["text"], **({"logprobs": part["logprobs"]} if "logprobs" in part else {})}
            yield self._event(PartEvent, SAYS[item["type"]] + ".done", **deepcopy(spoken))
            yield self._event(PartEvent, "response.content_part.done", part=deepcopy(part))
        else:
            yield self._call(".done", name=item["name"], arguments=item["arguments"])
        yield self._event(ItemEvent, "response.output_item.done", item=deepcopy(item))
        self._open = None

    def _delta(self, event: Text | Reasoning) -> ResponseEvent:
        said: dict[str, Any] = {"delta": event.text}
        if isinstance(event, Text):
            said["logprobs"] = self._output.logprobs(event)
        return self._event(PartEvent, SAYS[self._item["type"]] + ".delta", **said)

    def _call(self, what: str, **fields: str) -> ResponseEvent:
        return self._event(CallEvent, "response.function_call_arguments" + what, **fields)

    @property
    def _item(self) -> Item:
        assert self._open is not None
        return self._output.items[self._open]

    def _event(self, kind: type[ResponseEvent], type: str, **fields: Any) -> ResponseEvent:
        """Only what is set is sent."""
        assert self._open is not None
        self._number += 1
        place: dict[str, Any] = {"output_index": self._open}
        if kind is not ItemEvent:
            place["item_id"] = self._item["id"]
        if kind is PartEvent:
            place["content_index"] = 0
        return kind(type=type, sequence_number=self._number, **place, **fields)

    def _life(self, type: str) -> ResponseEvent:
        self._number += 1
        return LifeEvent(type=type, sequence_number=self._number, response=self.response.model_copy())


async def response_events(
    encoder: ResponseEncoder, said: AsyncIterator[Spoken | Finish]
) -> AsyncGenerator[ResponseEvent, None]:
    """From where the request is admitted."""
    yield encoder.in_progress()
    async for event in said:
        for each in encoder.finished(event) if isinstance(event, Finish) else encoder.said(event):
            yield each


def framed(event: ResponseEvent) -> StreamEvent:
    """As it is kept and sent. A response is told with all its fields, of all else only what there is."""
    data = event.model_dump_json(exclude_none=not isinstance(event, LifeEvent))
    return StreamEvent(number=event.sequence_number, type=event.type, data=data)


def _emptied(item: Item) -> Item:
    """As it began."""
    if item["type"] == "function_call":
        return item | {"arguments": "", "status": "in_progress"}
    return item | {"content": [], "status": "in_progress"}


def _silent(part: dict[str, Any]) -> dict[str, Any]:
    return part | {"text": ""} | ({"logprobs": []} if "logprobs" in part else {})


def _usage(finish: Finish) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=finish.prompt_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=finish.cached_tokens),
        output_tokens=finish.completion_tokens,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=finish.reasoning_tokens),
        total_tokens=finish.prompt_tokens + finish.completion_tokens,
    )
