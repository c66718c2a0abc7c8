"""Batches: many requests of one file, run in what capacity is left, by any process that shares the database.

A process claims a batch as a whole, and the batch of a process that is gone is claimed by another.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from typing import cast
from uuid import uuid4

from database.batch_models import CANCELLING, IN_PROGRESS, VALIDATING
from database.batch_models import Batch as BatchRow
from database.batch_repository import Unfinished
from database.repositories import Repositories
from schemas.batch_schema import (
    WINDOWS,
    Batch,
    BatchError,
    BatchErrors,
    BatchUsage,
    Endpoint,
    InputTokensDetails,
    NewBatch,
    OutputTokensDetails,
    RequestCounts,
    Status,
)
from schemas.page_schema import Page, page
from services import callers
from services.batches.input_file import InputLimits as InputLimits
from services.batches.input_file import Line as Line
from services.batches.results import LineAnswer as LineAnswer
from services.batches.run import BatchRun, Surroundings, enter, to_its_end
from services.claim_service import CallerOf
from services.errors import Conflict, InvalidRequest, NotFound, Overloaded, Unavailable
from services.file_service import FileService
from services.history.lease import Lease
from services.history.store import Store
from services.history.writer import is_gone

logger = logging.getLogger(__name__)

POLL_S = 1.0
AT_ONCE = 8  # batches that a process runs
MAX_LOOKED_AT = 1000
MAX_UNFINISHED = 1000  # of an owner


class BatchService:
    """What the routes call."""

    def __init__(self, store: Store, files: FileService, worker: "BatchWorker") -> None:
        self._store = store
        self._files = files
        self._worker = worker

    async def create(self, request: NewBatch, owner: str) -> Batch:
        file = await self._input_file(request.input_file_id, owner)
        now, expiry = time.time(), request.output_expires_after
        row = BatchRow(
            id=f"batch_{uuid4().hex}",
            owner=owner,
            key_id=callers.current().key or None,
            endpoint=request.endpoint,
            input_file_id=file,
            completion_window=request.completion_window,
            status=VALIDATING,
            created_at=now,
            expires_at=now + WINDOWS[request.completion_window],
            output_expires_after_s=expiry.seconds if expiry else None,
            metadata_=dict(request.metadata) if request.metadata is not None else None,
        )
        async with self._store.writing() as repositories:
            if await repositories.batches.num_unfinished(owner) >= MAX_UNFINISHED:
                raise Overloaded(f"A project has {MAX_UNFINISHED} unfinished batches at most", retry_after=60)
            await repositories.batches.add(row)
        self._worker.wake()
        return _batch(row)

    async def _input_file(self, file_id: str, owner: str) -> str:
        try:
            file = await self._files.get(file_id, owner)
        except NotFound as error:
            raise NotFound(error.text, param="input_file_id") from None
        if file.purpose != "batch":
            raise InvalidRequest("'%s' must be a file that was uploaded with the purpose batch", "input_file_id")
        return file.id

    async def get(self, batch_id: str, owner: str) -> Batch:
        async with self._store.reading() as repositories:
            return _batch(await _row(repositories, batch_id, owner))

    async def page(self, owner: str, *, limit: int, after: str | None) -> Page[Batch]:
        async with self._store.reading() as repositories:
            last = after and await repositories.batches.get(after, owner)
            if after and not last:
                raise InvalidRequest("'%s' is not a batch of this project", "after")
            found = await repositories.batches.page(owner, limit=limit + 1, after=last or None)
        return page([_batch(row) for row in found], [row.id for row in found], limit)

    async def cancel(self, batch_id: str, owner: str) -> Batch:
        """Its process stops within a second; what is done stays."""
        async with self._store.writing() as repositories:
            row = await _row(repositories, batch_id, owner, lock=True)
            if row.status in (VALIDATING, IN_PROGRESS):
                enter(row, CANCELLING)
            elif row.status != CANCELLING:
                raise Conflict(f"A batch that is {row.status} cannot be cancelled", param="batch_id")
        return _batch(row)


class BatchWorker:
    """Claims batches and runs them, until it is stopped. `is_open`: whether this process takes new work."""

    def __init__(
        self, surroundings: Surroundings, lease: Lease, *, caller_of: CallerOf, is_open: Callable[[], bool]
    ) -> None:
        self._in = surroundings
        self._lease = lease
        self._caller_of = caller_of
        self._is_open = is_open
        self._running: dict[str, asyncio.Task[None]] = {}
        self._task: asyncio.Task[None] | None = None
        self._woken = asyncio.Event()

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="batches")

    async def stop(self) -> None:
        """Leaves unfinished batches to other processes, or to the next start."""
        tasks = [*self._running.values(), *([self._task] if self._task else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._in.results.settle()
        with suppress(Unavailable):  # a process that is gone is noticed
            async with self._in.store.writing() as repositories:
                await repositories.batches.release(self._in.writer)

    def wake(self) -> None:
        """There is a new batch."""
        self._woken.set()

    async def _run(self) -> None:
        while True:
            try:
                await self._claim()
            except Unavailable:  # the checkpoints log an outage
                pass
            except Exception:
                logger.exception("Claiming batches failed; retrying")
            with suppress(TimeoutError):
                async with asyncio.timeout(POLL_S):
                    await self._woken.wait()
            self._woken.clear()

    async def _claim(self) -> None:
        room = AT_ONCE - len(self._running)
        if room < 1 or not self._is_open():
            return
        for each in (await self._claimable())[:room]:
            if batch := await to_its_end(self._try_claim(each)):
                self._start(batch)

    async def _claimable(self) -> list[Unfinished]:
        """Of owners with the fewest running ones first."""
        async with self._in.store.reading() as repositories:
            found = await repositories.batches.unfinished(MAX_LOOKED_AT)
            silent = await self._lease.silent(repositories) if any(each.writer for each in found) else set[str]()
        free = [each for each in found if self._is_free(each, silent)]
        places = Counter(each.owner for each in found if each not in free)
        order: dict[str, int] = {}
        for each in free:
            places[each.owner] += 1
            order[each.id] = places[each.owner]
        return sorted(free, key=lambda each: order[each.id])

    def _is_free(self, batch: Unfinished, silent: set[str]) -> bool:
        if batch.id in self._running:
            return False
        return batch.writer in silent or is_gone(batch.writer, self._in.writer)

    async def _try_claim(self, batch: Unfinished) -> BatchRow | None:
        async with self._in.store.writing() as repositories:
            return await repositories.batches.claim(batch, self._in.writer)

    def _start(self, batch: BatchRow) -> None:
        run = BatchRun(batch, self._caller_of(batch.owner, batch.key_id), self._in)
        task = asyncio.create_task(run.run(), name=batch.id)
        self._running[batch.id] = task
        task.add_done_callback(lambda task: self._end(batch.id, task))

    def _end(self, batch_id: str, task: "asyncio.Task[None]") -> None:
        del self._running[batch_id]
        self._woken.set()
        if not task.cancelled() and (error := task.exception()):
            logger.error("Batch %s has failed; it begins again", batch_id, exc_info=error)


async def _row(repositories: Repositories, batch_id: str, owner: str, *, lock: bool = False) -> BatchRow:
    if (found := await repositories.batches.get(batch_id, owner, lock=lock)) is None:
        raise NotFound(f"No batch with id '{batch_id[:64]}'", param="batch_id")
    return found


def _batch(row: BatchRow) -> Batch:
    times = {f"{status}_at": int(at) for status, at in row.times.items()}
    errors = [BatchError.model_validate(each) for each in row.errors or ()]
    return Batch(
        id=row.id,
        endpoint=cast(Endpoint, row.endpoint),  # the table has what this service wrote
        model=row.model,
        errors=BatchErrors(data=errors) if errors else None,
        input_file_id=row.input_file_id,
        completion_window=row.completion_window,
        status=cast(Status, row.status),
        output_file_id=row.output_file_id,
        error_file_id=row.error_file_id,
        created_at=int(row.created_at),
        expires_at=int(row.expires_at),
        request_counts=RequestCounts(total=row.total, completed=row.completed, failed=row.failed),
        usage=_usage(row.usage),
        metadata=row.metadata_,
        **times,
    )


def _usage(counts: dict[str, int]) -> BatchUsage:
    prompt, completion = counts.get("prompt_tokens", 0), counts.get("completion_tokens", 0)
    return BatchUsage(
        input_tokens=prompt,
        input_tokens_details=InputTokensDetails(cached_tokens=counts.get("cached_tokens", 0)),
        output_tokens=completion,
        output_tokens_details=OutputTokensDetails(reasoning_tokens=counts.get("reasoning_tokens", 0)),
        total_tokens=prompt + completion,
    )
