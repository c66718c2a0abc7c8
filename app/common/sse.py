"""Server-sent events: the only place that knows their framing.

OpenAI's streams carry `data:` lines and comments, nothing else: the official client stumbles over `id:`, `retry:` and
named keep-alives. Ids, names and retry are for `EventSource` alone.

sse-starlette ends all streams on SIGTERM by itself; here running answers may go on until the drain is over
(`app/common/drain.py`), so its own way is switched off.
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

# Seconds in which a refusal still gets its own status. After that (a model that loads) the 200 goes out and keep-alives
# begin, because OkHttp gives up on a server that is silent for 10; a refusal is an event then.
FIRST_WAIT = 2.0

# Line ends to Python's `str.splitlines`, and so to `ollama`, httpx and requests; JSON itself escapes all others.
LINE_ENDS = {end.encode(): rf"\u{ord(end):04x}".encode() for end in "\x85\u2028\u2029"}
LINE_END = re.compile(b"|".join(LINE_ENDS))

OVER = "0" * 32 + ":end"  # the last event of no message: a browser that reconnects with it is answered by 204


@dataclass(frozen=True, slots=True)
class Framing(Generic[T]):
    """How a stream's items, its last words and its silence look on the wire."""

    item: Callable[[T], bytes]
    error: Callable[[Problem], bytes]
    end: bytes = b""
    silence: bytes = b": keep-alive\n\n"
    media_type: str = "text/event-stream"
    is_json: bool = True  # what is not ASCII stands in JSON strings only, so that it may be escaped


class Sse:
    """Makes responses; `keepalive` and `send_timeout` in seconds."""

    def __init__(self, *, keepalive: float, send_timeout: float) -> None:
        self._keepalive = keepalive
        self._send_timeout = send_timeout

    async def openai(self, chunks: AsyncGenerator[BaseModel, None], headers: Mapping[str, str]) -> "Stream":
        return await self.respond(chunks, OPENAI, headers)

    async def responses(self, events: AsyncGenerator[StreamEvent, None], headers: Mapping[str, str]) -> "Stream":
        """Named events, whose data say their names once more; the connection ends with the last."""
        return await self.respond(events, RESPONSES, headers)

    async def messages(self, pieces: AsyncGenerator[BaseModel, None], headers: Mapping[str, str]) -> "Stream":
        """Plain `data:` events for readers that know no `[DONE]`: they end with the connection."""
        return await self.respond(pieces, MESSAGES, headers)

    async def browser(self, events: AsyncGenerator[BrowserEvent, None]) -> "Stream":
        return await self.respond(events, BROWSER)

    async def respond(
        self, source: AsyncGenerator[T, None], framing: Framing[T], headers: Mapping[str, str] | None = None
    ) -> "Stream":
        primed = Primed(source)
        await primed.wait(FIRST_WAIT)
        return Stream(
            primed,
            _body(primed, framing),
            headers=headers,
            media_type=framing.media_type,
            ping=self._keepalive,
            ping_message_factory=lambda: framing.silence,
            send_timeout=self._send_timeout,
        )


class Primed(Generic[T]):
    """A generator whose first step is under way, so that it can be refused before anything is sent."""

    def __init__(self, source: AsyncGenerator[T, None]) -> None:
        self._source = source
        self._first = asyncio.ensure_future(_up_to_one(source))

    async def wait(self, seconds: float) -> None:
        """Raises what the first step raised; returns after `seconds` if it is still busy."""
        try:
            await asyncio.wait({self._first}, timeout=seconds)
            if self._first.done():
                self._first.result()
        except BaseException:
            await self.aclose()
            raise

    async def first(self) -> list[T]:
        """What the first step made: one item, or none where there are none."""
        return await self._first

    @property
    def rest(self) -> AsyncGenerator[T, None]:
        return self._source

    async def aclose(self) -> None:
        """Also right when nothing was ever taken: closing a generator that has not started would run none of it."""
        if not self._first.done():
            self._first.cancel()
            await asyncio.wait({self._first})
        await self._source.aclose()


async def _up_to_one(source: AsyncGenerator[T, None]) -> list[T]:
    """A list, because the end of a generator that yields nothing is an exception that no future may carry on."""
    async for item in source:
        return [item]
    return []


class Stream(EventSourceResponse):
    """Closes its source however the response ends, also when the client left before the first event was sent."""

    def __init__(self, source: Primed[Any], body: AsyncIterator[bytes], **options: Any) -> None:
        super().__init__(body, **options)
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            logger.warning("a reader took nothing for too long, its stream was given up")
        finally:
            with anyio.CancelScope(shield=True):
                await self._source.aclose()


async def _body(source: Primed[T], framing: Framing[T]) -> AsyncIterator[bytes]:
    on_one_line = escape_line_ends if framing.is_json else bytes
    try:
        for item in await source.first():
            yield on_one_line(framing.item(item))
        async for item in source.rest:
            yield on_one_line(framing.item(item))
    except Exception as error:  # the 200 is out: whatever happens now can only be told as an event
        yield on_one_line(framing.error(problem(error)))
    if framing.end:
        yield framing.end


def escape_line_ends(data: bytes) -> bytes:
    """JSON in UTF-8 with U+2028, U+2029 and U+0085 escaped, at which many readers of lines would break it."""
    if data.isascii():  # most chunks are: nothing is searched for in them
        return data
    return LINE_END.sub(lambda found: LINE_ENDS[found[0]], data)


def _openai_chunk(chunk: BaseModel) -> bytes:
    # what model_dump_json decodes, only to be encoded again
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
    return _browser_event(BrowserEvent(id=OVER, event="error", data=orjson.dumps(found.body()).decode()))


OPENAI = Framing(_openai_chunk, _openai_error, end=b"data: [DONE]\n\n")
RESPONSES = Framing(_stream_event, _response_error)
MESSAGES = Framing(_openai_chunk, _named_error)
# text as it is: `EventSource` ends lines at carriage returns and line feeds only, and would show an escape to people
BROWSER = Framing(_browser_event, _browser_error, is_json=False)
