"""Admission of long texts: a few are rendered and tokenised at a time, and their memory is returned afterwards."""

import asyncio
import ctypes
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import cache
from typing import Any

from services.errors import Overloaded

SHORT = 262_144  # characters of texts that are admitted at once
MAX_IN_FLIGHT = 2_097_152  # characters of long texts; a longer one runs alone
MAX_WAITING = 67_108_864  # characters of long texts that wait; beyond that 429
RETRY_S = 5.0
TRIM_DELAY_S = 1.0  # after the last long text, when its request is freed


class TextService:
    """In order of arrival: a long text takes a second at most."""

    def __init__(self, max_in_flight: int = MAX_IN_FLIGHT, max_waiting: int = MAX_WAITING) -> None:
        self._free = self._capacity = max_in_flight
        self._max_waiting = max_waiting
        self._num_waiting = 0  # characters
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._trim_timer: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def room(self, characters: int) -> AsyncIterator[None]:
        """Raises Overloaded if too many texts are waiting."""
        if characters <= SHORT:
            yield
            return
        size = min(characters, self._capacity)
        await self._acquire(size, characters)
        try:
            yield
        finally:
            self._free += size
            self._admit()
            self._trim_later()

    async def _acquire(self, size: int, characters: int) -> None:
        if self._num_waiting + characters > self._max_waiting and self._waiting:
            raise Overloaded("Too many long texts are waiting to be read", retry_after=RETRY_S)
        waiter = (size, asyncio.get_running_loop().create_future())
        self._waiting.append(waiter)
        self._num_waiting += characters
        self._admit()
        try:
            await waiter[1]
        except asyncio.CancelledError:
            if not waiter[1].cancelled():  # it was just admitted
                self._free += size
            elif waiter in self._waiting:
                self._waiting.remove(waiter)
            self._admit()
            raise
        finally:
            self._num_waiting -= characters

    def _admit(self) -> None:
        while self._waiting and (self._waiting[0][1].cancelled() or self._waiting[0][0] <= self._free):
            size, turn = self._waiting.popleft()
            if not turn.cancelled():
                self._free -= size
                turn.set_result(None)

    def _trim_later(self) -> None:
        if self._trim_timer is not None:
            self._trim_timer.cancel()
        self._trim_timer = asyncio.get_running_loop().call_later(TRIM_DELAY_S, _trim_in_thread)


def _trim_in_thread() -> None:
    with suppress(RuntimeError):  # the loop is being closed
        asyncio.get_running_loop().run_in_executor(None, trim_memory)


def trim_memory() -> None:
    """Returns freed memory to the system: the C library keeps it in a heap per thread."""
    if (library := _c_library()) is not None:
        library.malloc_trim(0)


@cache
def _c_library() -> Any | None:
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):
        return None
    return library if hasattr(library, "malloc_trim") else None


def characters(messages: Iterable[Mapping[str, Any]]) -> int:
    """Number of characters of all messages."""
    return sum(_length(each.get("content")) + _length(each.get("reasoning_content")) for each in messages)


def _length(content: object) -> int:
    match content:
        case str():
            return len(content)
        case list():
            return sum(len(part["text"]) for part in content if isinstance(part.get("text"), str))
        case _:
            return 0
