"""The contents of a file as an answer: in pieces, as the client takes them, and from where a broken download ended."""

import re
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import format_datetime
from http import HTTPStatus
from typing import NamedTuple
from urllib.parse import quote

import anyio
from fastapi import Request
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from services.errors import ServiceError
from services.file_service import Content

PIECE_BYTES = 256 * 1024
RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})", re.ASCII)


class Range(NamedTuple):
    start: int
    end: int  # exclusive


class FileContent(StreamingResponse):
    """Closes the file. No browser shows it, only downloads it: it may be a page, with scripts that would run with this
    origin's rights."""

    media_type = "application/octet-stream"

    def __init__(self, request: Request, content: Content) -> None:
        self._content = content
        self._is_head = request.method == "HEAD"
        self._piece = b""  # the first one
        self._range = whole = Range(0, content.bytes)
        headers = _headers(content)
        status = HTTPStatus.OK
        if (found := _wanted(request, headers["etag"], content.bytes)) is not None:
            self._range = found
            status = (
                HTTPStatus.PARTIAL_CONTENT if found.end > found.start else HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
            )
            place = f"{found.start}-{found.end - 1}" if found.end > found.start else "*"
            headers["content-range"] = f"bytes {place}/{whole.end}"
        headers["content-length"] = str(self._range.end - self._range.start)
        super().__init__(self._pieces(), status, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._read_first()
            # from here on a failure breaks the connection: the client finds bytes missing, and asks for them by a range
            with suppress(ServiceError):
                await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._content.file.close()

    async def _read_first(self) -> None:
        """Before the status is sent, so that a store that fails is one. Raises ServiceError."""
        if not self._is_head and self._range.end > self._range.start:
            await self._content.file.seek(self._range.start)
            self._piece = await self._read(self._range.start)

    async def _pieces(self) -> AsyncIterator[bytes]:
        at, piece = self._range.start, self._piece
        while piece:
            yield piece
            at += len(piece)
            piece = await self._read(at)

    async def _read(self, at: int) -> bytes:
        return await self._content.file.read(min(PIECE_BYTES, self._range.end - at)) if at < self._range.end else b""


def _headers(content: Content) -> dict[str, str]:
    return {
        "accept-ranges": "bytes",
        "content-disposition": f"attachment; filename*=utf-8''{quote(content.filename, safe='')}",
        "etag": f'"{content.id}"',  # contents never change
        "last-modified": format_datetime(datetime.fromtimestamp(content.created_at, UTC), usegmt=True),
    }


def _wanted(request: Request, etag: str, size: int) -> Range | None:
    """None: all of it, as also for several ranges, and for one of another file."""
    found = RANGE.fullmatch(request.headers.get("range", ""))
    if found is None or not any(found.groups()) or request.headers.get("if-range", etag) != etag:
        return None
    first, last = found.groups()
    if not first:
        return Range(max(0, size - int(last)), size)
    end = min(size, int(last) + 1) if last else size
    if last and int(last) < int(first):
        return None
    return Range(min(int(first), size), end)
