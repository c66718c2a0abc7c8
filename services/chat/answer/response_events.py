"""Events -> the events of a streamed response; the plain answer is the `response` of the last of them."""

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

from schemas.response_answer_schema import (
    CallEvent,
    CompactionEvent,
    IncompleteDetails,
    InputTokensDetails,
    ItemEvent,
    LifecycleEvent,
    OutputTokensDetails,
    PartEvent,
    Response,
    ResponseError,
    ResponseEvent,
    ResponseUsage,
    StreamEvent,
    SummaryEvent,
)
from services.chat import call_items
from services.chat.answer.output import OutputItems, status
from services.chat.answer.reasoning_output import ReasoningOutput, summary_part
from services.chat.compaction.item import public_item
from services.chat.events import Arguments, Compacted, Compacting, Finish, OutputEvent, Reasoning, Text
from services.chat.items import Item, reasoning_text
from services.errors import InvalidRequest, Overloaded, QuotaExceeded, RateLimited, ServiceError, Stopped, Unavailable

INTERRUPTED = "interrupted"

# What the event is called that a response ends with, by its status.
FINAL_EVENTS = {
    "completed": "response.completed",
    "incomplete": "response.incomplete",
    "failed": "response.failed",
    "cancelled": "response.incomplete",  # the contract has no event of that name
}
TEXT_EVENTS = {"message": "response.output_text", "reasoning": "response.reasoning_text"}

# Of a search for tools there is the item alone.
CALL_EVENTS = {
    "function_call": "response.function_call_arguments",
    "custom_tool_call": "response.custom_tool_call_input",
}


class ResponseEncoder:
    """Numbers the events of one response, and keeps its state."""

    def __init__(self, response: Response, output: OutputItems, reasoning: ReasoningOutput | None = None) -> None:
        self._response = response
        self._output = output
        self._reasoning = reasoning or ReasoningOutput()
        self._summary = ""  # of the open reasoning item, as far as it was sent
        self._open: int | None = None
        self._number = -1
        self._is_in_progress = False
        self._finish: Finish | None = None

    @property
    def has_begun(self) -> bool:
        return self._number >= 0

    @property
    def response(self) -> Response:
        return self._response

    def queue(self) -> list[ResponseEvent]:
        """The first events of a background response."""
        return [self._lifecycle("response.created"), self._lifecycle("response.queued")]

    def begin(self, response: Response) -> list[ResponseEvent]:
        """The request is admitted, and the response as complete as it can be before its output. An answer that follows
        a compaction is admitted after it: there are no events for that."""
        self._response = response.model_copy(update={"status": "in_progress"})
        if self._is_in_progress:
            return []
        self._is_in_progress = True
        created = [] if self.has_begun else [self._lifecycle("response.created")]
        return [*created, self._lifecycle("response.in_progress")]

    def add(self, event: OutputEvent | Compacting | Compacted | Finish) -> list[ResponseEvent]:
        if isinstance(event, Finish):
            self._finish = event
            return []
        return list(self._output_events(event))

    def end(self, completed_at: float) -> list[ResponseEvent]:
        """To be called when the answer is stored."""
        return list(self._finished(self._finish, completed_at)) if self._finish else []

    def fail(self, error: ServiceError) -> list[ResponseEvent]:
        """The output so far stays."""
        return list(self._failed(error))

    def _output_events(self, event: OutputEvent | Compacting | Compacted) -> Iterator[ResponseEvent]:
        index = self._output.add(
            replace(event, item=public_item(event.item)) if isinstance(event, Compacted) else event
        )
        if index is None:
            return
        if index != self._open:
            yield from self._close()
            yield from self._begin(index)
        match event:
            case Arguments(text) if self._item["type"] in CALL_EVENTS:
                yield self._call_event(".delta", delta=text)
            case Reasoning() if self._reasoning.is_summarized:
                yield from self._summarize()
            case Text() | Reasoning():
                yield self._delta(event)
            case Compacting():
                yield self._event(CompactionEvent, "response.compaction.compacting")
            case Compacted():
                yield from self._close()  # the answer may take its time

    def _finished(self, finish: Finish, completed_at: float) -> Iterator[ResponseEvent]:
        self._response.usage = usage(
            finish.prompt_tokens, finish.cached_tokens, finish.completion_tokens, finish.reasoning_tokens
        )
        if status(finish) == "completed":
            self._response.completed_at = int(completed_at)
            yield from self._end("completed")
        else:
            self._response.incomplete_details = IncompleteDetails(reason="max_output_tokens")
            yield from self._end("incomplete")

    def _failed(self, error: ServiceError) -> Iterator[ResponseEvent]:
        match error:
            case Stopped():
                yield from self._end("cancelled")
            case Unavailable():
                self._response.incomplete_details = IncompleteDetails(reason=INTERRUPTED)
                yield from self._end("incomplete")
            case _:
                self._response.error = ResponseError(code=error_code(error), message=error.message)
                yield from self._end("failed")

    def _end(self, how: str) -> Iterator[ResponseEvent]:
        known = len(self._output.items)
        self._output.end("completed" if how == "completed" else "incomplete")
        for index in range(known, len(self._output.items)):  # an answer without a word
            yield from self._begin(index)
        yield from self._close(last=True)
        self._response.output = [self._reasoning.shown(item) for item in self._output.items if not _is_unwritten(item)]
        self._response.status = how  # type: ignore[assignment]  # one of its values
        yield self._lifecycle(FINAL_EVENTS[how])

    def _begin(self, index: int) -> Iterator[ResponseEvent]:
        self._open = index
        item = self._item
        yield self._event(ItemEvent, "response.output_item.added", item=self._reasoning.shown(_emptied(item)))
        if self._is_summary(item):
            self._summary = ""
            yield self._event(SummaryEvent, "response.reasoning_summary_part.added", part=summary_part(""))
        elif item["type"] in TEXT_EVENTS:
            yield self._event(PartEvent, "response.content_part.added", part=_silent(item["content"][0]))

    def _is_summary(self, item: Item) -> bool:
        return item["type"] == "reasoning" and self._reasoning.is_summarized

    def _summarize(self) -> Iterator[ResponseEvent]:
        """What a thought that has grown adds to its summary."""
        before, self._summary = self._summary, self._reasoning.summary(reasoning_text(self._item))
        if delta := self._summary[len(before) :]:
            yield self._event(SummaryEvent, "response.reasoning_summary_text.delta", delta=delta)

    def _close(self, *, last: bool = False) -> Iterator[ResponseEvent]:
        if self._open is None:
            return
        item = self._item
        if not last:
            item["status"] = "completed"
        if self._is_summary(item):
            yield self._event(SummaryEvent, "response.reasoning_summary_text.done", text=self._summary)
            yield self._event(SummaryEvent, "response.reasoning_summary_part.done", part=summary_part(self._summary))
        elif item["type"] in TEXT_EVENTS:
            part = item["content"][0]
            spoken = {"text": part["text"], **({"logprobs": part["logprobs"]} if "logprobs" in part else {})}
            yield self._event(PartEvent, TEXT_EVENTS[item["type"]] + ".done", **deepcopy(spoken))
            yield self._event(PartEvent, "response.content_part.done", part=deepcopy(part))
        elif item["type"] in CALL_EVENTS:
            yield self._call_event(".done", **_whole_call(item))
        yield self._event(ItemEvent, "response.output_item.done", item=self._reasoning.shown(item))
        self._open = None

    def _delta(self, event: Text | Reasoning) -> ResponseEvent:
        fields: dict[str, Any] = {"delta": event.text}
        if isinstance(event, Text):
            fields["logprobs"] = self._output.logprobs(event)
        return self._event(PartEvent, TEXT_EVENTS[self._item["type"]] + ".delta", **fields)

    def _call_event(self, what: str, **fields: str) -> ResponseEvent:
        return self._event(CallEvent, CALL_EVENTS[self._item["type"]] + what, **fields)

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

    def _lifecycle(self, type: str) -> ResponseEvent:
        self._number += 1
        return LifecycleEvent(type=type, sequence_number=self._number, response=self._response.model_copy())


def stream_event(event: ResponseEvent) -> StreamEvent:
    """JSON as it is stored and sent: a response with all its fields, everything else without its nulls."""
    data = event.model_dump_json(exclude_none=not isinstance(event, LifecycleEvent))
    last = event.type in FINAL_EVENTS.values()
    return StreamEvent(number=event.sequence_number, type=event.type, data=data, last=last)


def _is_unwritten(item: Item) -> bool:
    """A compaction that failed."""
    return item["type"] == "compaction" and not item["encrypted_content"]


def error_code(error: ServiceError) -> str:
    match error:
        case Overloaded() | RateLimited() | QuotaExceeded():
            return "rate_limit_exceeded"
        case InvalidRequest():
            return "invalid_prompt"
        case _:
            return "server_error"


def _emptied(item: Item) -> Item:
    """As it began."""
    if item["type"] == "compaction":
        return item | {"encrypted_content": ""}
    if item["type"] not in TEXT_EVENTS:
        return call_items.without_arguments(item)
    return item | {"content": [], "status": "in_progress"}


def _whole_call(item: Item) -> dict[str, str]:
    names = ("name", "arguments") if item["type"] == "function_call" else ("input",)
    return {name: item[name] for name in names}


def _silent(part: dict[str, Any]) -> dict[str, Any]:
    return part | {"text": ""} | ({"logprobs": []} if "logprobs" in part else {})


def usage(prompt: int, cached: int, completion: int, reasoning: int) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=prompt,
        input_tokens_details=InputTokensDetails(cached_tokens=cached),
        output_tokens=completion,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=reasoning),
        total_tokens=prompt + completion,
    )
