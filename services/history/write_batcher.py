"""Group commit: writes that wait for the store at the same time share one transaction.

If a batch fails, its writes are retried one by one, so that an error reaches only the write that caused it. A write
whose waiter is cancelled before its batch starts is dropped; after that it is written.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, TypeVar

from services import tracing
from services.errors import ServiceError, Unavailable

Write = TypeVar("Write")

MAX_BATCH = 256  # writes in one transaction


@dataclass(slots=True)
class _Pending(Generic[Write]):
    write: Write
    done: "asyncio.Future[None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def settle(self, error: Exception | None) -> None:
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


class WriteBatcher(Generic[Write]):
    """`commit` writes a batch in one transaction and returns a map from each rejected write to its error."""

    def __init__(self, commit: Callable[[Sequence[Write]], Awaitable[Mapping[Write, ServiceError]]]) -> None:
        self._commit = commit
        self._pending: list[_Pending[Write]] = []
        self._retries: list[_Pending[Write]] = []  # writes of a failed batch, retried one by one
        self._task: asyncio.Task[None] | None = None

    def add(self, write: Write) -> "asyncio.Future[None]":
        """Queues a write; the future is done once it is durable. The write happens even if nobody awaits it."""
        pending = _Pending(write)
        span = tracing.current()
        if span.is_recording:
            child = span.child("store", {"parley.store.write": type(write).__name__})
            pending.done.add_done_callback(partial(_stored, child))
        self._pending.append(pending)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="history writer")
        return pending.done

    async def settle(self) -> None:
        """Returns once nothing is being written any more."""
        while self._task and not self._task.done():
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        while self._retries or self._pending:
            if batch := [each for each in self._next_batch() if not each.done.cancelled()]:
                await self._write(batch)

    def _next_batch(self) -> list[_Pending[Write]]:
        if self._retries:
            return [self._retries.pop(0)]
        batch, self._pending = self._pending[:MAX_BATCH], self._pending[MAX_BATCH:]
        return batch

    def _take_all(self) -> list[_Pending[Write]]:
        pending, self._retries, self._pending = [*self._retries, *self._pending], [], []
        return pending

    async def _write(self, batch: list[_Pending[Write]]) -> None:
        try:
            rejected = await self._commit([each.write for each in batch])
        except Unavailable as outage:  # fails all pending writes: a timeout for each would take too long
            for each in [*batch, *self._take_all()]:
                each.settle(outage)
        except Exception as error:
            if len(batch) > 1:
                self._retries = batch
            else:
                batch[0].settle(error)
        else:
            for each in batch:
                each.settle(rejected.get(each.write))


def _stored(span: tracing.Span, done: "asyncio.Future[None]") -> None:
    if not done.cancelled() and (error := done.exception()):
        span.fail(type(error).__name__)
    span.end()
