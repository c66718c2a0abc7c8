"""Measures how long a client keeps the server waiting. Sits between a socket and uvicorn's h11 protocol.

It forwards all calls to the protocol and reads nothing of it but h11's state.
"""

import asyncio
import socket
import time
from asyncio.trsock import TransportSocket
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol, cast

import h11

current: ContextVar["Connection | None"] = ContextVar("connection", default=None)

REASON = b"The request did not arrive in time"
TIMEOUT = b"HTTP/1.1 408 Request Timeout\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n" % len(REASON)
TIMEOUT += b"Connection: close\r\n\r\n" + REASON


@dataclass(frozen=True, slots=True)
class Deadlines:
    """In seconds, and bytes per second. They count only while the server waits for the client."""

    headers: float  # from the connection, or a later request's first byte, to the end of the headers
    body: float  # between two bytes of a body, and for the whole body in addition to `body_rate`
    body_rate: float
    send: float  # within which the client must read some of the answer


def _send_at_once(transport: asyncio.BaseTransport) -> None:
    """Small writes do not wait until the client acknowledges earlier ones, 40 ms. asyncio sets it for sockets that name
    their protocol: those that uvicorn opens for its workers do not."""
    connection = transport.get_extra_info("socket")
    if isinstance(connection, TransportSocket) and connection.family in (socket.AF_INET, socket.AF_INET6):
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


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
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_lost = on_lost
        self.is_extra = False  # beyond the limit: for probes only
        self._inner = inner
        self._http = http
        self._registry = registry
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._state: type[object] = h11.IDLE
        self._has_sent_request = False
        self._since = self._last = self._seen = clock()  # time of the last state change, byte and check
        self._received = 0  # bytes of this body
        self._unsent, self._sent_at = 0, self._since

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's has all of it, but is none of its subclasses
        _send_at_once(transport)
        self._inner.connection_made(transport)
        self._registry.opened(self)

    def data_received(self, data: bytes) -> None:
        self._last = self._clock()
        self._received += len(data)
        token = current.set(self)  # the request's task starts here and inherits the context
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
        self._on_lost()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def is_late(self, now: float, deadlines: Deadlines) -> bool:
        """To be called regularly: changes of state are noticed on a call."""
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
        if self._transport and not self._transport.is_reading():  # the server has paused reading
            self._since, self._last = self._since + paused, now
        allowed = deadlines.body + self._received / deadlines.body_rate
        return now - self._last > deadlines.body or now - self._since > allowed

    def silent_since(self, now: float, deadlines: Deadlines) -> float | None:
        """None while its request is processed or its body arrives in time."""
        self._follow(now)
        if self._state is h11.IDLE:
            return min(self._since, self._last)
        if self._state is not h11.SEND_BODY:
            return None
        is_slow = now - self._last > 1 or now - self._since > deadlines.body
        return self._last if is_slow else None

    def end(self) -> None:
        """Closes it, with a 408 if a request is under way. An idle client would take that for its next answer."""
        self._registry.closed(self)
        if self._transport is None:
            return
        if self._unsent or self._transport.is_closing():
            self._transport.abort()  # closing would wait until everything is read
            return
        has_begun = self._state is h11.SEND_BODY or bool(self._http.trailing_data[0])
        if has_begun and self._http.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._transport.write(TIMEOUT)
        self._transport.close()

    def _follow(self, now: float) -> None:
        state = self._http.their_state
        self._has_sent_request |= state is not h11.IDLE
        # between requests uvicorn's keep-alive timeout applies
        is_idle = state is h11.IDLE and self._has_sent_request and not self._http.trailing_data[0]
        if state is not self._state:
            self._state, self._since, self._last, self._received = state, now, now, 0
        elif is_idle:
            self._since = now

    def _is_stuck(self, now: float, seconds: float) -> bool:
        unsent = self._transport.get_write_buffer_size() if self._transport else 0
        if unsent != self._unsent or not unsent:
            self._unsent, self._sent_at = unsent, now
        return now - self._sent_at > seconds
