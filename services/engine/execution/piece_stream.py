"""The stream of one request's pieces, read on the event loop."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from types import TracebackType

from services.engine.base import Piece
from services.errors import ServiceError

# Filled by the engine, which must not hold the stream itself: one that is dropped unclosed could never be collected.
Mailbox = asyncio.Queue[Piece | ServiceError | None]  # None: the stream was closed


class PieceStream(AsyncGenerator[Piece, None]):
    """What `submit` returns. Closing it, or dropping the last reference to it, cancels the request.

    A class and not a generator function, because closing a generator that was never started runs none of its code.
    """

    def __init__(self, mailbox: Mailbox, cancel: Callable[[], None]) -> None:
        self._mailbox = mailbox
        self._cancel = cancel
        self._done = False

    async def asend(self, value: None, /) -> Piece:
        if self._done:
            raise StopAsyncIteration
        try:
            item = await self._mailbox.get()
        except asyncio.CancelledError:
            self._close()
            raise
        if self._done or item is None:
            raise StopAsyncIteration
        if isinstance(item, ServiceError):
            self._close()
            raise item
        if item.finish:
            self._close()
        return item

    async def athrow(
        self,
        typ: type[BaseException] | BaseException,
        val: BaseException | object = None,
        tb: TracebackType | None = None,
        /,
    ) -> Piece:
        self._close()
        raise typ

    async def aclose(self) -> None:
        self._close()

    def __del__(self) -> None:
        self._cancel()

    def _close(self) -> None:
        self._done = True
        self._cancel()
        self._mailbox.put_nowait(None)  # wakes another task that may be waiting for a piece
