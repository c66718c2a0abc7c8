"""Keeps what is being written: checkpoints of our own turns, an end for those that nobody writes any more."""

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from database.models import FAILED, INCOMPLETE, QUEUED
from database.models import Turn as TurnRow
from services.errors import Unavailable
from services.history.idempotency import KEPT_S
from services.history.store import Store
from services.history.stored_turn import StoredTurn
from services.history.turn_result import give_up
from services.history.writer import is_gone

logger = logging.getLogger(__name__)

FORGOTTEN_AT_ONCE = 1000  # conversations of one transaction
WATCH_S = 1.0  # between looks at what was stopped elsewhere


class CheckpointTask:
    """One per process: `writer` says which process, and turns of that name which it does not know are from an earlier
    life."""

    def __init__(
        self,
        store: Store,
        running: dict[str, StoredTurn],
        *,
        writer: str,
        checkpoint_s: float,
        ttl_s: float | None = None,
    ) -> None:
        self._store = store
        self._running = running
        self._writer = writer
        self._checkpoint_s = checkpoint_s
        self._ttl_s = ttl_s
        # far more than clocks of replicas may differ
        self._silence_s = max(3 * checkpoint_s, 15.0)
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        await _attempt(self.settle)
        self._tasks = {
            asyncio.create_task(self._keep(), name="history keeper"),
            asyncio.create_task(self._watch(), name="history watcher"),
        }

    async def stop(self) -> None:
        """Writes once more what could not be written before."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await _attempt(self.checkpoint)

    async def _keep(self) -> None:
        for beat in itertools.count(1):
            await asyncio.sleep(self._checkpoint_s)
            await _attempt(self.checkpoint)
            await _attempt(self._store.erase)
            if beat % 3 == 0:
                await _attempt(self.settle)
            if beat % 12 == 0:
                await _attempt(self.forget)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_S)
            await _attempt(self._look)

    async def _look(self) -> None:
        with suppress(Unavailable):  # the checkpoints tell of it, not every look
            await self.look()

    async def look(self) -> None:
        """Tells our turns what others have cancelled or deleted."""
        going = self._going()
        if not going:
            return
        async with self._store.reading() as repositories:
            for stopped in await repositories.turns.stopped(list(going)):
                going[stopped].stopped.set()

    def _going(self) -> dict[str, StoredTurn]:
        return {turn.id: turn for turn in self._running.values() if turn.has_begun and not turn.result}

    async def checkpoint(self) -> None:
        """What this process is writing, in one transaction; then the ends that could not be written earlier."""
        if going := self._going():
            said = {turn.id: turn.said for turn in going.values()}
            async with self._store.writing() as repositories:
                await repositories.turns.checkpoint(said, self._writer, time.time())
        await asyncio.gather(*(turn.finish() for turn in list(self._running.values()) if turn.result is not None))

    async def settle(self) -> None:
        """Turns that nobody is writing any more become incomplete, with what their last checkpoint saved. Those that
        were still waiting have failed: nobody else would take them up."""
        async with self._store.reading() as repositories:
            running = await repositories.turns.running()
        # Looked up after the read: a turn of ours is in `_running` before anybody can read it.
        abandoned = [turn.id for turn in running if self._is_abandoned(turn)]
        if not abandoned:
            return
        async with self._store.writing() as repositories:
            await repositories.conversations.hold_of_turns(abandoned)
            settled = await repositories.turns.still_running(abandoned)
            for turn in settled:
                await give_up(repositories, turn, FAILED if turn.status == QUEUED else INCOMPLETE)
        logger.warning("%d answers were left unfinished, they are incomplete now", len(settled))

    async def forget(self) -> None:
        """What has not been used for longer than it is to be kept."""
        now = time.time()
        async with self._store.writing() as repositories:
            await repositories.idempotency_keys.forget(now - KEPT_S)
        if self._ttl_s is None:
            return
        async with self._store.writing() as repositories:  # another one: keys are locked after conversations
            forgotten = await repositories.conversations.forget(now - self._ttl_s, limit=FORGOTTEN_AT_ONCE)
        if forgotten:
            logger.info("%d conversations were not used any more, they are deleted", forgotten)

    def _is_abandoned(self, turn: TurnRow) -> bool:
        if turn.id in self._running:
            return False
        return time.time() - turn.updated_at > self._silence_s or is_gone(turn.writer, self._writer)


async def _attempt(step: Callable[[], Awaitable[object]]) -> None:
    try:
        await step()
    except Unavailable as error:
        logger.warning("%s: %s", error.message, error.__cause__)
    except Exception:
        logger.exception("Keeping the history failed, trying again at the next checkpoint")
