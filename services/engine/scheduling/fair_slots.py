"""Slots for long tasks, shared between owners: none takes all of them, and owners that wait take turns."""

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from services.errors import Overloaded

RETRY_S = 5.0


class FairSlots:
    def __init__(self, size: int, share: int, max_waiting: int | None = None) -> None:
        """`share`: slots that one owner may hold; `max_waiting`: tasks of one owner that may wait."""
        self._free = size
        self._share = share
        self._max_waiting = max_waiting
        self._held: Counter[str] = Counter()
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()  # in the order of turns

    @asynccontextmanager
    async def slot(self, owner: str) -> AsyncIterator[None]:
        await self._take(owner)
        try:
            yield
        finally:
            self._give_back(owner)

    async def _take(self, owner: str) -> None:
        waiting = self._waiting.setdefault(owner, deque())
        if self._max_waiting is not None and len(waiting) >= self._max_waiting:
            raise Overloaded("Too many new grammars are waiting to be compiled", retry_after=RETRY_S)
        waiting.append(turn := asyncio.get_running_loop().create_future())
        self._grant()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.cancelled():
                self._clear(owner, turn)
            else:  # it had just been granted
                self._give_back(owner)
            raise

    def _grant(self) -> None:
        while self._free and (owner := next((each for each in self._waiting if self._may(each)), None)) is not None:
            turn = self._waiting[owner].popleft()
            self._waiting.move_to_end(owner)
            self._drop_empty(owner)
            if not turn.cancelled():
                self._free -= 1
                self._held[owner] += 1
                turn.set_result(None)

    def _may(self, owner: str) -> bool:
        return self._held[owner] < self._share

    def _give_back(self, owner: str) -> None:
        self._free += 1
        self._held[owner] -= 1
        self._held += Counter()  # drops zero counts
        self._grant()

    def _clear(self, owner: str, turn: asyncio.Future[None]) -> None:
        if turn in self._waiting.get(owner, ()):
            self._waiting[owner].remove(turn)
            self._drop_empty(owner)

    def _drop_empty(self, owner: str) -> None:
        if not self._waiting[owner]:
            del self._waiting[owner]
