"""Decompresses request bodies; the size limit applies to the decompressed size.

Decompression runs in bounded steps and yields to other requests between them, so that a few kilobytes that expand to
gigabytes exhaust neither memory nor the event loop.
"""

import asyncio
import zlib

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.common.body_limits import MaxBytes
from app.common.errors import Problem
from services.errors import InvalidRequest

STEP = 256 * 1024  # decompressed bytes
WINDOW_BITS = {"gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS, "deflate": zlib.MAX_WBITS}
ACCEPTED = "gzip, deflate"
PARAM = "content-encoding"
COMPRESSION_HEADERS = (b"content-encoding", b"content-length")


class Decompress:
    """Passes plain bodies through; answers 415 for an unknown encoding."""

    def __init__(self, app: ASGIApp, max_bytes: MaxBytes) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        encoding = _encoding(scope)
        if encoding == "identity":
            await self._app(scope, receive, send)
        elif encoding in WINDOW_BITS:
            scope["headers"] = [header for header in scope["headers"] if header[0] not in COMPRESSION_HEADERS]
            await self._app(scope, _Body(receive, WINDOW_BITS[encoding], self._max_bytes(scope["path"])).receive, send)
        else:
            await _refuse(scope, receive, send)


def _encoding(scope: Scope) -> str:
    if scope["type"] != "http":
        return "identity"
    return Headers(scope=scope).get(PARAM, "").strip().lower() or "identity"


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    message = f"'{PARAM}': bodies are taken as they are or compressed with gzip or deflate"
    problem = Problem(415, message, "invalid_request_error", PARAM, "unsupported_encoding")
    response = problem.response(scope)
    response.headers["Accept-Encoding"] = ACCEPTED  # RFC 9110 asks for it
    await response(scope, receive, send)


class _Body:
    """Turns the messages of a compressed body into those of the decompressed one."""

    def __init__(self, receive: Receive, window_bits: int, max_bytes: int) -> None:
        self._receive = receive
        self._decompressor = zlib.decompressobj(window_bits)
        self._left = max_bytes
        self._is_last = False  # the message received last ends the body
        self._has_more = False  # decompressed data is left after the last step

    async def receive(self) -> Message:
        if self._has_more:
            await asyncio.sleep(0)  # lets other requests run
            return self._step(self._decompressor.unconsumed_tail)
        message = await self._receive()
        if message["type"] != "http.request":
            return message
        self._is_last = not message.get("more_body", False)
        return self._step(message.get("body", b""))

    def _step(self, compressed: bytes) -> Message:
        try:
            body = self._decompressor.decompress(compressed, STEP)
        except zlib.error:
            raise _invalid("is not what its content-encoding says") from None
        self._left -= len(body)
        if self._left < 0:
            raise HTTPException(413)
        self._has_more = len(body) == STEP or bool(self._decompressor.unconsumed_tail)
        if self._decompressor.unused_data:
            raise _invalid("goes on after the end of its compressed data")
        if self._is_last and not self._has_more and not self._decompressor.eof:
            raise _invalid("ends before its compressed data does")
        return {"type": "http.request", "body": body, "more_body": self._has_more or not self._is_last}


def _invalid(what: str) -> InvalidRequest:
    return InvalidRequest(f"The body {what}", param=PARAM)
