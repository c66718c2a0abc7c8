"""Room for long texts: a few at a time are rendered and tokenised, and their memory is given back afterwards."""

import asyncio
import ctypes
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import cache
from typing import Any

from services.errors import Overloaded

SHORT = 262_144  # characters that nobody waits with
MAX_IN_FLIGHT = 2_097_152  # characters of long texts; a longer one goes alone
MAX_WAITING = 67_108_864  # characters of long texts that wait; beyond that 429
RETRY_S = 5.0
GIVE_BACK_S = 1.0  # after the last long text: its request is forgotten by then


class TextService:
    """First come, first served: a long text takes a second at most."""

    def __init__(self, max_in_flight: int = MAX_IN_FLIGHT, max_waiting: int = MAX_WAITING) -> None:
        self._free = self._capacity = max_in_flight
        self._max_waiting = max_waiting
        self._num_waiting = 0  # characters
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._giving_back: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def room(self, characters: int) -> AsyncIterator[None]:
        """Raises Overloaded where too many wait already."""
        if characters <= SHORT:
            yield
            return
        size = min(characters, self._capacity)
        await self._take(size, characters)
        try:
            yield
        finally:
            self._free += size
            self._let_in()
            self._give_back_later()

    async def _take(self, size: int, characters: int) -> None:
        if self._num_waiting + characters > self._max_waiting and self._waiting:
            raise Overloaded("Too many long texts are waiting to be read", retry_after=RETRY_S)
        place = (size, asyncio.get_running_loop().create_future())
        self._waiting.append(place)
        self._num_waiting += characters
        self._let_in()
        try:
            await place[1]
        except asyncio.CancelledError:
            if not place[1].cancelled():  # it had just been let in
                self._free += size
            elif place in self._waiting:
                self._waiting.remove(place)
            self._let_in()
            raise
        finally:
            self._num_waiting -= characters

    def _let_in(self) -> None:
        while self._waiting and (self._waiting[0][1].cancelled() or self._waiting[0][0] <= self._free):
            size, turn = self._waiting.popleft()
            if not turn.cancelled():
                self._free -= size
                turn.set_result(None)

    def _give_back_later(self) -> None:
        if self._giving_back is not None:
            self._giving_back.cancel()
        self._giving_back = asyncio.get_running_loop().call_later(GIVE_BACK_S, _give_back_in_thread)


def _give_back_in_thread() -> None:
    with suppress(RuntimeError):  # the loop is being closed
        asyncio.get_running_loop().run_in_executor(None, give_back_memory)


def give_back_memory() -> None:
    """What was freed, to the system: the C library keeps it for the next time, in a heap for each thread."""
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
    """Of all that their authors have written."""
    return sum(_of(each.get("content")) + _of(each.get("reasoning_content")) for each in messages)


def _of(content: object) -> int:
    match content:
        case str():
            return len(content)
        case list():
            return sum(len(part["text"]) for part in content if isinstance(part.get("text"), str))
        case _:
            return 0
