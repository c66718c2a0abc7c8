"""Answers for a browser's `EventSource`. Generation continues when the reader disconnects.

An `EventSource` reconnects by itself and sends the id of the last event it received. Event ids are
`<message id>:<offset>`, where the offset counts the characters sent so far, so the rest of an answer can be cut from
its text: from memory or the database while any process generates it, and from the stored message afterwards.
`<message id>:end` is the last event.
"""

import re
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial

import orjson

from schemas.message_schema import BrowserEvent, BrowserQuestion, StoppedMessage
from schemas.response_answer_schema import StreamEvent
from services.chat import items
from services.chat.events import Event, Finish, Head, Text, head_of
from services.errors import InvalidRequest, ServiceError, Stopped
from services.history.answer import Answer
from services.history.background_stream import INTERRUPTED, BackgroundStream
from services.history.turn import Kind
from services.message_service import MessageService
from services.stream_service import StreamService
from services.turn_service import TurnService

EVENT_ID = re.compile(r"([0-9a-f]{32}):(\d{1,9}|end)")
RETRY_MS = 1000
CANCELLED = "cancelled"
KIND: Kind = "message"

Begin = Callable[[], Awaitable[str]]  # returns the id of the message


class EventSourceService:
    def __init__(self, messages: MessageService, turns: TurnService, streams: StreamService) -> None:
        self._messages = messages
        self._turns = turns
        self._streams = streams

    def create(self, question: BrowserQuestion, owner: str) -> AsyncGenerator[BrowserEvent, None]:
        """A new answer, generated whether or not its reader stays. The first event has its id, before any text."""
        return self._follow(partial(self._begin, question, owner), owner)

    async def _begin(self, question: BrowserQuestion, owner: str) -> str:
        if not question.prompt:
            raise InvalidRequest("'prompt' is required", param="prompt")
        message_id, run = await self._messages.begin(question, owner)
        source = _EventSource(run)
        stream = BackgroundStream(source.events(), owner, source.closing_events, is_transient=True)
        await stream.first_event()
        self._streams.register(message_id, stream)
        return message_id

    def resume(self, last_event_id: str, owner: str) -> AsyncGenerator[BrowserEvent, None] | None:
        """The events after that one; None if it was the last. Never starts a second answer."""
        match = EVENT_ID.fullmatch(last_event_id)
        if match is None:
            raise InvalidRequest("The last event id is not one of this server's", param="Last-Event-ID")
        message_id, seen = match.groups()
        if seen == "end":
            return None
        return self._follow(partial(self._known, message_id, owner), owner, int(seen))

    async def _known(self, message_id: str, owner: str) -> str:
        if not self._streams.is_local(message_id, owner):
            await self._turns.answer(message_id, owner, KIND)
        return message_id

    async def stop(self, message_id: str, owner: str) -> StoppedMessage:
        """Ends the answer for all its readers, of every process; the text generated so far stays."""
        stopped = await self._turns.cancel(message_id, owner, KIND)
        await self._streams.stop(message_id)
        return StoppedMessage(message_id=message_id, status=stopped.status)

    async def _follow(self, begin: Begin, owner: str, seen: int = -1) -> AsyncGenerator[BrowserEvent, None]:
        """Of the message that begins, or has begun. The first step raises refusals."""
        message_id = await begin()
        reader, stream = _Reader(message_id, seen), self._streams.reader(message_id, seen)
        while batch := await stream.read():
            for event in reader.events_of(batch):
                yield event
        if not stream.has_last:
            for event in reader.remaining(await self._turns.answer(message_id, owner, KIND)):
                yield event


@dataclass(slots=True)
class _EventSource:
    """Converts an answer to stream events whose numbers are offsets in its text."""

    run: AsyncGenerator[Event, None]
    head: Head | None = None

    async def events(self) -> AsyncGenerator[StreamEvent, None]:
        async with aclosing(self.run) as run:
            self.head = await head_of(run)
            yield StreamEvent(number=0, type="start", data=_message_data(self.head.id, self.head.conversation_id))
            offset, reason = 0, ""
            async for event in run:
                if isinstance(event, Text) and event.text:
                    offset += len(event.text)
                    yield StreamEvent(number=offset, type="text", data=event.text)
                elif isinstance(event, Finish):
                    reason = event.reason
        yield self._done(offset + 1, reason)

    def closing_events(self, error: ServiceError, number: int) -> list[StreamEvent]:
        if isinstance(error, Stopped):
            return [self._done(number, CANCELLED)]
        return [StreamEvent(number=number, type="error", data=_error_data(error.message), last=True)]

    def _done(self, number: int, reason: str) -> StreamEvent:
        assert self.head is not None
        data = _message_data(self.head.id, self.head.conversation_id, finish_reason=reason)
        return StreamEvent(number=number, type="done", data=data, last=True)


@dataclass(slots=True)
class _Reader:
    """The position of one reader. Text that is available at the same time is sent as one event."""

    message_id: str
    num_seen: int  # characters; -1: not even the start event
    held_back: str = ""  # a carriage return, which may be half of a line break: an event cannot end in it

    def events_of(self, batch: list[StreamEvent]) -> Iterable[BrowserEvent]:
        if batch[0].type == "start":
            self.num_seen = 0
            yield BrowserEvent(id=f"{self.message_id}:0", event="start", data=batch[0].data, retry=RETRY_MS)
        at = self.num_seen + len(self.held_back)
        text = self.held_back
        for event in batch:
            if event.type == "text":
                text += event.data[max(0, at - (event.number - len(event.data))) :]
        self.held_back = "\r" if text.endswith("\r") and not batch[-1].last else ""
        yield from self._text(text.removesuffix(self.held_back) if self.held_back else text)
        if batch[-1].last:
            yield self._end(batch[-1].type, batch[-1].data)

    def remaining(self, stored: Answer) -> Iterable[BrowserEvent]:
        """The rest of an answer that no process generates any more."""
        yield from self._text(items.text(stored.output[0] if stored.output else ())[max(0, self.num_seen) :])
        if stored.status in ("completed", CANCELLED):
            reason = stored.choices[0]["finish_reason"] if stored.status == "completed" else CANCELLED
            yield self._end("done", _message_data(stored.id, stored.conversation_id, finish_reason=reason))
        else:
            yield self._end("error", _error_data(INTERRUPTED))

    def _text(self, text: str) -> Iterable[BrowserEvent]:
        if text:
            self.num_seen += len(text)
            yield BrowserEvent(id=f"{self.message_id}:{self.num_seen}", data=text)

    def _end(self, name: str, data: str) -> BrowserEvent:
        return BrowserEvent(id=f"{self.message_id}:end", event=name, data=data)


def _message_data(message_id: str, conversation_id: str | None, **more: str | None) -> str:
    return orjson.dumps({"message_id": message_id, "conversation_id": conversation_id, **more}).decode()


def _error_data(message: str) -> str:
    return orjson.dumps({"error": {"message": message, "type": "server_error", "param": None, "code": None}}).decode()
