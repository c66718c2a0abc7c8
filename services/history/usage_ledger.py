"""Usage of requests that store nothing: written in batches, each once, also if a commit was not confirmed."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field

from database.usage_repository import Usage
from services import tracing
from services.errors import Unavailable
from services.history.store import Store
from services.history.usage import UsageMeter

logger = logging.getLogger(__name__)

WAIT_S = 1.0  # that an answer's end waits for its count to be durable; an outage must not hold answers up

_collected: ContextVar[list[Usage] | None] = ContextVar("collected usage", default=None)


@contextmanager
def collecting() -> Iterator[list[Usage]]:
    """Usage that is recorded within the `with` is left to its caller, who writes it with what the request was for."""
    found: list[Usage] = []
    token = _collected.set(found)
    try:
        yield found
    finally:
        _collected.reset(token)


@dataclass(slots=True)
class _Batch:
    number: int
    usage: list[Usage] = field(default_factory=list)
    written: asyncio.Event = field(default_factory=asyncio.Event)


class UsageLedger:
    def __init__(self, store: Store, writer: str) -> None:
        self._store = store
        self._writer = writer
        self._open = _Batch(1)
        self._unwritten: list[_Batch] = []
        self._task: asyncio.Task[None] | None = None
        self._is_behind = False  # the last write failed
        self._is_confirmed = True  # what was written last; else it may be in the database nevertheless

    async def record(self, usage: Usage) -> None:
        """Durable on return, unless the database is slow or away: then it is written later."""
        if (collected := _collected.get()) is not None:
            collected.append(usage)
            return
        batch = self._open
        batch.usage.append(usage)
        self._start()
        if not self._is_behind:
            with tracing.step("store", {"parley.store.write": "Usage"}), suppress(TimeoutError):
                async with asyncio.timeout(WAIT_S):
                    await batch.written.wait()

    @asynccontextmanager
    async def measured(self, meter: UsageMeter) -> AsyncIterator[UsageMeter]:
        """Records what the meter has counted, however the events end."""
        failed = True
        try:
            yield meter
            failed = False
        except (GeneratorExit, asyncio.CancelledError):  # the client has left
            failed = False
            raise
        finally:
            await asyncio.shield(self.record(meter.usage(failed=failed)))

    async def flush(self) -> None:
        """Writes what is left, for a process that ends and after an outage."""
        if self._unwritten or self._open.usage:
            self._start()
        if self._task:
            await self._task

    def _start(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="usage writer")

    async def _run(self) -> None:
        while self._open.usage or self._unwritten:
            if self._open.usage:
                self._unwritten.append(self._open)
                self._open = _Batch(self._open.number + 1)
            try:
                await self._write()
            except Unavailable as outage:
                if not self._is_behind:
                    logger.warning("%s; usage is written later", outage.message)
                self._is_behind = True
                return

    async def _write(self) -> None:
        batches = list(self._unwritten)
        was_confirmed, self._is_confirmed = self._is_confirmed, False
        async with self._store.writing() as repositories:
            last = 0 if was_confirmed else await repositories.usage.last_batch(self._writer)
            await repositories.usage.set_batch(self._writer, batches[-1].number, time.time())
            await repositories.usage.add(usage for batch in batches if batch.number > last for usage in batch.usage)
        self._is_behind, self._is_confirmed = False, True
        self._unwritten.clear()
        for batch in batches:
            batch.written.set()
