"""Checkpoints the running turns of this process, and settles turns whose writer is gone."""

import asyncio
import itertools
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from database.models import FAILED, INCOMPLETE, QUEUED
from database.models import Turn as TurnRow
from database.repositories import Repositories
from database.usage_repository import Usage
from services.errors import Unavailable
from services.history.idempotency import KEY_TTL_S
from services.history.lease import Lease
from services.history.store import Store
from services.history.stored_turn import StoredTurn
from services.history.turn_result import force_finish
from services.history.usage import abandoned_usage
from services.history.usage_ledger import UsageLedger
from services.history.writer import is_gone

logger = logging.getLogger(__name__)

EXPIRED_PER_TRANSACTION = 1000  # conversations
WRITER_TTL_S = 86_400.0  # a process that wrote no usage for so long has none that it must not write again
STOP_POLL_S = 1.0  # interval of signs of life, and of looking up turns that other processes have stopped
MAX_ATTEMPTS = 3  # writers that a turn may lose: one that ends its process must not end them all


@dataclass(frozen=True, slots=True)
class KeptRecords:
    """For how many seconds usage and the audit log are kept; None: for ever."""

    usage_s: float | None = None
    audit_s: float | None = None


KEEP_ALL = KeptRecords()


class CheckpointTask:
    """One per process. `writer` names the process; turns of that name that it does not know are left from a crash."""

    def __init__(
        self,
        store: Store,
        running: dict[str, StoredTurn],
        usage: UsageLedger,
        *,
        writer: str,
        checkpoint_s: float,
        ttl_s: float | None = None,
        kept: KeptRecords = KEEP_ALL,
    ) -> None:
        self.lease = Lease(store, writer)
        self._store = store
        self._running = running
        self._writer = writer
        self._checkpoint_s = checkpoint_s
        self._ttl_s = ttl_s
        self._usage = usage
        self._kept = kept
        # far more than the clock skew between replicas
        self._abandoned_after_s = max(3 * checkpoint_s, 15.0)
        self._claiming: set[str] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        await _run_step(self.lease.beat)
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
        await _run_step(self._usage.flush)
        await _run_step(self.lease.leave)

    async def _run(self) -> None:
        for tick in itertools.count(1):
            await asyncio.sleep(self._checkpoint_s)
            await _run_step(self.checkpoint)
            await _run_step(self._usage.flush)
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
            await self.lease.beat()
            await self.look_for_stopped()
            if self._store.is_shared:
                await self.settle_abandoned()

    async def look_for_stopped(self) -> None:
        """Marks turns of this process that were cancelled, deleted or claimed elsewhere."""
        active = self._active_turns()
        if not active:
            return
        async with self._store.reading() as repositories:
            for stopped in await repositories.turns.stopped_among(list(active), self._writer):
                active[stopped].stopped.set()

    def _active_turns(self) -> dict[str, StoredTurn]:
        return {turn.id: turn for turn in self._running.values() if turn.has_begun and not turn.result}

    @contextmanager
    def claiming(self, turn_ids: Collection[str]) -> Iterator[None]:
        """Until the turns that this process claims are registered: their rows name it as their writer before that."""
        self._claiming.update(turn_ids)
        try:
            yield
        finally:
            self._claiming.difference_update(turn_ids)

    async def checkpoint(self) -> None:
        """Saves the output of all running turns in one transaction, then retries unwritten results."""
        if active := self._active_turns():
            output = {turn.id: turn.output for turn in active.values()}
            async with self._store.writing() as repositories:
                await repositories.turns.checkpoint(output, self._writer, time.time())
        await asyncio.gather(*(turn.finish() for turn in list(self._running.values()) if turn.result is not None))

    async def settle_abandoned(self) -> None:
        """Turns whose writer is gone: those that others can go on with are left to them, the others become incomplete,
        with the output of their last checkpoint, or failed if they were never admitted."""
        async with self._store.reading() as repositories:
            running = await repositories.turns.running()
            silent = await self.lease.silent(repositories) if running else set[str]()
        # compared after the read: a turn of ours is in `_running` before it can be read
        abandoned = [turn.id for turn in running if self._is_abandoned(turn, silent)]
        if not abandoned:
            return
        async with self._store.writing() as repositories:
            await repositories.conversations.lock_of_turns(abandoned)
            locked = await repositories.turns.lock_running(abandoned)
            # another process may have been faster
            settled = [
                turn for turn in locked if self._is_abandoned(turn, silent) and not (turn.writer is None and turn.body)
            ]
            used = [usage for turn in settled for usage in await _settle(repositories, turn)]
            await repositories.usage.add(used)
        if settled:
            logger.warning("%d answers were abandoned by their writer", len(settled))

    async def delete_expired(self) -> None:
        """Deletes old idempotency keys, and conversations not used within the configured lifetime."""
        now = time.time()
        async with self._store.writing() as repositories:
            await repositories.idempotency_keys.delete_expired(now - KEY_TTL_S)
            await self._delete_old_records(repositories, now)
        if self._ttl_s is None:
            return
        async with self._store.writing() as repositories:  # a second transaction: keys are locked after conversations
            num_deleted = await repositories.conversations.delete_unused(
                now - self._ttl_s, limit=EXPIRED_PER_TRANSACTION
            )
        if num_deleted:
            logger.info("%d unused conversations were deleted", num_deleted)

    async def _delete_old_records(self, repositories: Repositories, now: float) -> None:
        if self._kept.audit_s is not None:
            await repositories.audit.delete_before(now - self._kept.audit_s)
        await repositories.usage.delete_before(
            0 if self._kept.usage_s is None else now - self._kept.usage_s, writers=now - WRITER_TTL_S
        )

    def _is_abandoned(self, turn: TurnRow, silent: Collection[str]) -> bool:
        if turn.id in self._running or turn.id in self._claiming:
            return False
        if turn.writer in silent or is_gone(turn.writer, self._writer):
            return True
        return time.time() - turn.updated_at > self._abandoned_after_s


async def _settle(repositories: Repositories, turn: TurnRow) -> list[Usage]:
    """Returns what is to be counted of it."""
    if turn.body is not None and turn.attempt < MAX_ATTEMPTS:
        await repositories.turns.release(turn, time.time())
        return []
    is_unbegun = turn.status == QUEUED and not turn.partial_output
    await force_finish(repositories, turn, FAILED if is_unbegun else INCOMPLETE)
    return [] if is_unbegun else [abandoned_usage(turn)]


async def _run_step(step: Callable[[], Awaitable[object]]) -> None:
    try:
        await step()
    except Unavailable as error:
        logger.warning("%s: %s", error.message, error.__cause__)
    except Exception:
        logger.exception("A history checkpoint step failed; retrying at the next checkpoint")
