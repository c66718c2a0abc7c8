"""One connection between its socket and uvicorn's h11 protocol: how long its client has left the server waiting.

It stands in front of the protocol and passes everything on; of the protocol it reads h11's state alone.
"""

import asyncio
import time
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import h11

current: ContextVar["Connection | None"] = ContextVar("connection", default=None)

REASON = b"The request did not arrive in time"
TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n" % len(REASON)
TIMEOUT += b"Connection: close\r\n\r\n" + REASON


@dataclass(frozen=True, slots=True)
class Deadlines:
    """Seconds, and bytes a second. None counts while the server is the one to act."""

    headers: float  # from the connection, or a further request's first byte, to the end of its headers
    body: float  # between two bytes of a body, and for all of it beyond what `body_rate` allows
    body_rate: float
    send: float  # in which the client takes some of its answer


class Registry(Protocol):
    def opened(self, connection: "Connection") -> None: ...
    def closed(self, connection: "Connection") -> None: ...


class Connection(asyncio.Protocol):
    def __init__(
        self,
        inner: asyncio.Protocol,
        http: h11.Connection,
        registry: Registry,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.is_extra = False  # beyond the cap: for probes only
        self._inner = inner
        self._http = http
        self._registry = registry
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._state: type[object] = h11.IDLE
        self._has_asked = False
        self._since = self._last = self._seen = clock()  # of this state; byte; look
        self._received = 0  # of this body
        self._unsent, self._sent_at = 0, self._since

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._inner.connection_made(transport)
        self._registry.opened(self)

    def data_received(self, data: bytes) -> None:
        self._last = self._clock()
        self._received += len(data)
        token = current.set(self)  # the request's task begins in here, and inherits it
        try:
            self._inner.data_received(data)
        finally:
            current.reset(token)
        self._follow(self._last)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def connection_lost(self, error: Exception | None) -> None:
        self._registry.closed(self)
        self._inner.connection_lost(error)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def is_late(self, now: float, deadlines: Deadlines) -> bool:
        """Asked regularly: a state is noticed to have changed when it is looked at."""
        self._follow(now)
        if self._transport and self._transport.get_protocol() is not self:  # upgraded
            self._registry.closed(self)
            return False
        self._seen, paused = now, now - self._seen
        if self._is_stuck(now, deadlines.send):
            return True
        if self._state is h11.IDLE:
            return now - self._since > deadlines.headers
        if self._state is not h11.SEND_BODY:
            return False
        if self._transport and not self._transport.is_reading():  # the server does not take it
            self._since, self._last = self._since + paused, now
        allowed = deadlines.body + self._received / deadlines.body_rate
        return now - self._last > deadlines.body or now - self._since > allowed

    def silent_since(self, now: float, deadlines: Deadlines) -> float | None:
        """None: its request is being answered, or its body arriving as it should."""
        self._follow(now)
        if self._state is h11.IDLE:
            return min(self._since, self._last)
        if self._state is not h11.SEND_BODY:
            return None
        is_slow = now - self._last > 1 or now - self._since > deadlines.body
        return self._last if is_slow else None

    def end(self) -> None:
        """Says why to one that has begun a request and got no answer yet: an idle one would take it for the next's."""
        self._registry.closed(self)
        if self._transport is None:
            return
        if self._unsent or self._transport.is_closing():
            self._transport.abort()  # closing would wait until all is read
            return
        has_begun = self._state is h11.SEND_BODY or bool(self._http.trailing_data[0])
        if has_begun and self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._transport.write(TIMEOUT)
        self._transport.close()

    def _follow(self, now: float) -> None:
        state = self._http.their_state
        self._has_asked |= state is not h11.IDLE
        # between two requests uvicorn's own keep-alive timeout counts
        is_idle = state is h11.IDLE and self._has_asked and not self._http.trailing_data[0]
        if state is not self._state:
            self._state, self._since, self._last, self._received = state, now, now, 0
        elif is_idle:
            self._since = now

    def _is_stuck(self, now: float, seconds: float) -> bool:
        unsent = self._transport.get_write_buffer_size() if self._transport else 0
        if unsent != self._unsent or not unsent:
            self._unsent, self._sent_at = unsent, now
        return now - self._sent_at > seconds
