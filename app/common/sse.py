"""Server-sent events: the only module that knows their framing.

OpenAI's streams have `data:` lines and comments only: the official client fails on `id:`, `retry:` and named
keep-alives. Ids, names and retry are for `EventSource`.

sse-starlette ends all streams on SIGTERM; here running answers continue until the drain is over
(`app/common/drain.py`), so that is switched off.
"""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import anyio
import orjson
from pydantic import BaseModel
from sse_starlette import EventSourceResponse, ServerSentEvent
from sse_starlette.sse import AppStatus, SendTimeoutError
from starlette.types import Receive, Scope, Send

from app.common.errors import Problem, problem
from schemas.message_schema import BrowserEvent
from schemas.response_answer_schema import ErrorEvent, StreamEvent

logger = logging.getLogger(__name__)

AppStatus.enable_automatic_graceful_drain = False

T = TypeVar("T")

# Seconds within which an error gets its own status. After that (a model is loading) the 200 is sent and keep-alives
# begin, because OkHttp's read timeout is 10 s; a later error is an event.
FIRST_EVENT_WAIT_S = 2.0

# Line ends for Python's `str.splitlines`, and so for `ollama`, httpx and requests; JSON escapes all others.
LINE_ENDS = {end.encode(): rf"\u{ord(end):04x}".encode() for end in "\x85\u2028\u2029"}
LINE_END = re.compile(b"|".join(LINE_ENDS))

END_ID = "0" * 32 + ":end"  # a last event id that no message has: a browser that reconnects with it gets 204


@dataclass(frozen=True, slots=True)
class Framing(Generic[T]):
    """The wire format of a stream: items, errors, end and keep-alives."""

    item: Callable[[T], bytes]
    error: Callable[[Problem], bytes]
    end: bytes = b""
    keepalive: bytes = b": keep-alive\n\n"
    media_type: str = "text/event-stream"
    is_json: bool = True  # non-ASCII characters are in JSON strings only, and may be escaped


class Sse:
    """Makes streaming responses; `keepalive` and `send_timeout` in seconds."""

    def __init__(self, *, keepalive: float, send_timeout: float) -> None:
        self._keepalive = keepalive
        self._send_timeout = send_timeout

    async def openai(self, chunks: AsyncGenerator[BaseModel, None], headers: Mapping[str, str]) -> "Stream":
        return await self.respond(chunks, OPENAI, headers)

    async def responses(self, events: AsyncGenerator[StreamEvent, None], headers: Mapping[str, str]) -> "Stream":
        """Named events whose data repeat the name; the connection ends with the last."""
        return await self.respond(events, RESPONSES, headers)

    async def messages(self, pieces: AsyncGenerator[BaseModel, None], headers: Mapping[str, str]) -> "Stream":
        """Plain `data:` events without `[DONE]`: the stream ends with the connection."""
        return await self.respond(pieces, MESSAGES, headers)

    async def browser(self, events: AsyncGenerator[BrowserEvent, None]) -> "Stream":
        return await self.respond(events, BROWSER)

    async def respond(
        self, source: AsyncGenerator[T, None], framing: Framing[T], headers: Mapping[str, str] | None = None
    ) -> "Stream":
        primed = Primed(source)
        await primed.wait(FIRST_EVENT_WAIT_S)
        return Stream(
            primed,
            _body(primed, framing),
            headers=headers,
            media_type=framing.media_type,
            ping=self._keepalive,
            ping_message_factory=lambda: framing.keepalive,
            send_timeout=self._send_timeout,
        )


class Primed(Generic[T]):
    """A generator whose first item is awaited before the response starts, so that an error gets its own status."""

    def __init__(self, source: AsyncGenerator[T, None]) -> None:
        self._source = source
        self._first = asyncio.ensure_future(_first_item(source))

    async def wait(self, seconds: float) -> None:
        """Raises the error of the first step; returns after `seconds` if the step is still running."""
        try:
            await asyncio.wait({self._first}, timeout=seconds)
            if self._first.done():
                self._first.result()
        except BaseException:
            await self.aclose()
            raise

    async def first(self) -> list[T]:
        """The first item, or nothing if the generator is empty."""
        return await self._first

    @property
    def rest(self) -> AsyncGenerator[T, None]:
        return self._source

    async def aclose(self) -> None:
        """Also cleans up if nothing was read: closing a generator that has not started would run none of it."""
        if not self._first.done():
            self._first.cancel()
            await asyncio.wait({self._first})
        await self._source.aclose()


async def _first_item(source: AsyncGenerator[T, None]) -> list[T]:
    """A list: StopAsyncIteration of an empty generator cannot be set on a future."""
    async for item in source:
        return [item]
    return []


class Stream(EventSourceResponse):
    """Closes its source however the response ends, also if the client leaves before the first event."""

    def __init__(self, source: Primed[Any], body: AsyncIterator[bytes], **options: Any) -> None:
        super().__init__(body, **options)
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            logger.warning("a stream was closed: its reader stopped reading")
        finally:
            with anyio.CancelScope(shield=True):
                await self._source.aclose()


async def _body(source: Primed[T], framing: Framing[T]) -> AsyncIterator[bytes]:
    escape = escape_line_ends if framing.is_json else bytes
    try:
        for item in await source.first():
            yield escape(framing.item(item))
        async for item in source.rest:
            yield escape(framing.item(item))
    except Exception as error:  # the 200 is sent: an error can only be an event now
        yield escape(framing.error(problem(error)))
    if framing.end:
        yield framing.end


def escape_line_ends(data: bytes) -> bytes:
    """Escapes U+2028, U+2029 and U+0085 in JSON: many line readers would split there."""
    if data.isascii():  # most chunks are
        return data
    return LINE_END.sub(lambda found: LINE_ENDS[found[0]], data)


def _openai_chunk(chunk: BaseModel) -> bytes:
    # model_dump_json would decode the bytes, only to encode them again
    return b"data: " + chunk.__pydantic_serializer__.to_json(chunk, exclude_unset=True) + b"\n\n"


def _openai_error(found: Problem) -> bytes:
    return b"data: " + orjson.dumps(found.body()) + b"\n\n"


def _stream_event(event: StreamEvent) -> bytes:
    return f"event: {event.type}\ndata: {event.data}\n\n".encode()


def _response_error(found: Problem) -> bytes:
    event = ErrorEvent(sequence_number=0, code=found.code, message=found.message, param=found.param)
    return b"event: error\ndata: " + event.model_dump_json().encode() + b"\n\n"


def _named_error(found: Problem) -> bytes:
    return b"event: error\n" + _openai_error(found)


def _browser_event(event: BrowserEvent) -> bytes:
    return ServerSentEvent(event.data, event=event.event, id=event.id, retry=event.retry, sep="\n").encode()


def _browser_error(found: Problem) -> bytes:
    return _browser_event(BrowserEvent(id=END_ID, event="error", data=orjson.dumps(found.body()).decode()))


OPENAI = Framing(_openai_chunk, _openai_error, end=b"data: [DONE]\n\n")
RESPONSES = Framing(_stream_event, _response_error)
MESSAGES = Framing(_openai_chunk, _named_error)
# not escaped: `EventSource` ends lines at CR and LF only, and would show the escapes
BROWSER = Framing(_browser_event, _browser_error, is_json=False)
