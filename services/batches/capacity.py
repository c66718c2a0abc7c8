"""How many requests of batches run at once: as many as keep the engines full, and a few that wait for a place."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

LOOKAHEAD = 16  # requests beyond those that run: they are tokenised, and wait where they are last in the queue
POLL_S = 0.02  # interval of looking whether the engines have begun with more


class Capacity:
    """`running`: how many requests the engines compute, whoever's they are; `most`: of batches at once."""

    def __init__(self, running: Callable[[], int], most: int) -> None:
        self._running = running
        self._most = most
        self._taken = 0
        self._turn = asyncio.Lock()  # is passed on in the order of arrival, so that batches take turns
        self._changed = asyncio.Event()

    async def take(self) -> "Slot":
        async with self._turn:
            while self._taken >= min(self._most, self._running() + LOOKAHEAD):
                self._changed.clear()
                try:
                    async with asyncio.timeout(POLL_S):
                        await self._changed.wait()
                except TimeoutError:
                    pass
            self._taken += 1
            return Slot(self)

    def give_back(self) -> None:
        self._taken -= 1
        self._changed.set()


@dataclass(slots=True)
class Slot:
    _capacity: Capacity
    _is_free: bool = False

    def release(self) -> None:
        """Once or more often."""
        if not self._is_free:
            self._is_free = True
            self._capacity.give_back()

    def task_ended(self, task: "asyncio.Task[None]") -> None:
        """Also of one that was cancelled before it began."""
        self.release()
