"""Checkpoints the running turns of this process, and settles turns whose writer is gone."""

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

from database.models import FAILED, INCOMPLETE, QUEUED
from database.models import Turn as TurnRow
from services.errors import Unavailable
from services.history.idempotency import KEY_TTL_S
from services.history.store import Store
from services.history.stored_turn import StoredTurn
from services.history.turn_result import force_finish
from services.history.writer import is_gone

logger = logging.getLogger(__name__)

EXPIRED_PER_TRANSACTION = 1000  # conversations
STOP_POLL_S = 1.0  # interval at which turns stopped by other processes are looked up


class CheckpointTask:
    """One per process. `writer` names the process; turns of that name that it does not know are left from a crash."""

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
        # far more than the clock skew between replicas
        self._abandoned_after_s = max(3 * checkpoint_s, 15.0)
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        await _run_step(self.settle_abandoned)
        self._tasks = {
            asyncio.create_task(self._run(), name="history checkpoints"),
            asyncio.create_task(self._poll_stopped(), name="history stop poll"),
        }

    async def stop(self) -> None:
        """Cancels the tasks and retries the results that could not be written."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        await _run_step(self.checkpoint)

    async def _run(self) -> None:
        for tick in itertools.count(1):
            await asyncio.sleep(self._checkpoint_s)
            await _run_step(self.checkpoint)
            await _run_step(self._store.erase)
            if tick % 3 == 0:
                await _run_step(self.settle_abandoned)
            if tick % 12 == 0:
                await _run_step(self.delete_expired)

    async def _poll_stopped(self) -> None:
        while True:
            await asyncio.sleep(STOP_POLL_S)
            await _run_step(self._look_quietly)

    async def _look_quietly(self) -> None:
        with suppress(Unavailable):  # the checkpoints log an outage
            await self.look_for_stopped()

    async def look_for_stopped(self) -> None:
        """Marks turns of this process that were cancelled or deleted elsewhere."""
        active = self._active_turns()
        if not active:
            return
        async with self._store.reading() as repositories:
            for stopped in await repositories.turns.stopped_among(list(active)):
                active[stopped].stopped.set()

    def _active_turns(self) -> dict[str, StoredTurn]:
        return {turn.id: turn for turn in self._running.values() if turn.has_begun and not turn.result}

    async def checkpoint(self) -> None:
        """Saves the output of all running turns in one transaction, then retries unwritten results."""
        if active := self._active_turns():
            output = {turn.id: turn.output for turn in active.values()}
            async with self._store.writing() as repositories:
                await repositories.turns.checkpoint(output, self._writer, time.time())
        await asyncio.gather(*(turn.finish() for turn in list(self._running.values()) if turn.result is not None))

    async def settle_abandoned(self) -> None:
        """Turns whose writer is gone become incomplete, with the output of their last checkpoint. Queued ones become
        failed: no other process would run them."""
        async with self._store.reading() as repositories:
            running = await repositories.turns.running()
        # compared after the read: a turn of ours is in `_running` before it can be read
        abandoned = [turn.id for turn in running if self._is_abandoned(turn)]
        if not abandoned:
            return
        async with self._store.writing() as repositories:
            await repositories.conversations.lock_of_turns(abandoned)
            settled = await repositories.turns.lock_running(abandoned)
            for turn in settled:
                await force_finish(repositories, turn, FAILED if turn.status == QUEUED else INCOMPLETE)
        logger.warning("%d answers were abandoned by their writer and are marked incomplete", len(settled))

    async def delete_expired(self) -> None:
        """Deletes old idempotency keys, and conversations not used within the configured lifetime."""
        now = time.time()
        async with self._store.writing() as repositories:
            await repositories.idempotency_keys.delete_expired(now - KEY_TTL_S)
        if self._ttl_s is None:
            return
        async with self._store.writing() as repositories:  # a second transaction: keys are locked after conversations
            num_deleted = await repositories.conversations.delete_unused(
                now - self._ttl_s, limit=EXPIRED_PER_TRANSACTION
            )
        if num_deleted:
            logger.info("%d unused conversations were deleted", num_deleted)

    def _is_abandoned(self, turn: TurnRow) -> bool:
        if turn.id in self._running:
            return False
        return time.time() - turn.updated_at > self._abandoned_after_s or is_gone(turn.writer, self._writer)


async def _run_step(step: Callable[[], Awaitable[object]]) -> None:
    try:
        await step()
    except Unavailable as error:
        logger.warning("%s: %s", error.message, error.__cause__)
    except Exception:
        logger.exception("A history checkpoint step failed; retrying at the next checkpoint")
