"""One batch on its way through this process: validated, run line by line, and finished.

What is done is in the database, line by line: a process that takes a batch over begins with what is missing.
"""

import asyncio
import logging
import tempfile
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Any, BinaryIO, TypeVar

from database.batch_models import CANCELLED, CANCELLING, COMPLETED, EXPIRED, FAILED, FINALIZING, IN_PROGRESS, VALIDATING
from database.batch_models import Batch as BatchRow
from database.repositories import Repositories
from schemas.batch_schema import BatchError
from services.batches.capacity import Capacity, Slot
from services.batches.input_file import Checked, Chunk, InputLimits, Line, Place, check, parse, read_chunk
from services.batches.results import LineAnswer, LineResult, Lost, answered, counts_of, not_executed
from services.callers import Caller, acting_as
from services.errors import ModelNotFound, NotFound, ServiceError, TryLater, Unavailable
from services.file_contents import ContentsMissing, OpenFile
from services.file_service import FileService, NewFile, finish_upload
from services.history.store import Store
from services.history.usage_ledger import collecting
from services.history.write_batcher import WriteBatcher

logger = logging.getLogger(__name__)

T = TypeVar("T")

POLL_S = 0.25  # interval of looking whether the batch was cancelled or has expired
RETRY_S = 2.0  # after an outage of the database, or of the files
MAX_WAIT_S = 30.0  # of a request that was refused for a limit, until it tries again
MAX_ATTEMPTS = 3  # that end without a new result, by a crash or a fault
READ_RESULTS = 500  # at once
OK = 200
NOT_EXECUTED = {
    EXPIRED: ("batch_expired", "This request could not be executed before the completion window expired."),
    CANCELLED: ("batch_cancelled", "This request was not executed before the batch was cancelled."),
}

Answer = Callable[
    [str, Line, str, str], Awaitable[LineAnswer]
]  # by endpoint, line, owner, and a key that is the line's
CheckModel = Callable[[str, str | None], None]  # by endpoint and the name in the request; raises ModelNotFound


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """What all batches of a process share. `answer` raises TryLater for what may be tried again."""

    store: Store
    writer: str
    files: FileService
    results: WriteBatcher[LineResult]
    capacity: Capacity
    answer: Answer
    check_model: CheckModel
    limits: InputLimits


class BatchRun:
    def __init__(self, batch: BatchRow, caller: Caller, surroundings: Surroundings) -> None:
        self._batch = batch
        self._caller = replace(caller, flex=True)
        self._in = surroundings

    async def run(self) -> None:
        """To its end, through outages of the database. Returns if another process has taken it over."""
        with acting_as(self._caller), suppress(Lost):
            while True:
                try:
                    return await self._run()
                except Unavailable as outage:
                    logger.warning("%s; batch %s goes on later", outage.message, self._batch.id)
                await asyncio.sleep(RETRY_S)

    async def _run(self) -> None:
        batch = await self._update(lambda batch: None)
        try:
            if batch.attempts >= MAX_ATTEMPTS:
                return await self._give_up()
            content = await self._in.files.content(batch.input_file_id, batch.owner)
            async with content.file as file:
                if batch.status == VALIDATING and not await self._validate(file):
                    return None
                if batch.status != CANCELLING or batch.total:
                    await self._run_lines(file)
                await self._finish(file)
        except (NotFound, ContentsMissing):
            error = BatchError(code="input_file_not_found", message="The input file cannot be read any more")
            await self._end(FAILED, [], [error])

    async def _give_up(self) -> None:
        """Requests that have ended their process again and again must not end all processes."""
        error = BatchError(code="server_error", message="The server has failed over the requests that have no result")
        logger.error("batch %s has failed %d times without a result", self._batch.id, self._batch.attempts)
        await self._end(FAILED, [], [error])

    # --- validating ---

    async def _validate(self, file: OpenFile) -> bool:
        checked = await file.apply(check, self._batch.endpoint, self._in.limits)
        errors = [*checked.errors, *self._model_errors(checked)]
        if errors:
            await self._end(FAILED, [], errors)
            return False

        def begin(batch: BatchRow) -> None:
            batch.total = checked.total
            batch.model = next(iter(checked.models)) if len(checked.models) == 1 else None
            if batch.status == VALIDATING:
                enter(batch, IN_PROGRESS)

        await self._update(begin)
        return True

    def _model_errors(self, checked: Checked) -> list[BatchError]:
        errors = []
        for model, line in checked.models.items():
            try:
                self._in.check_model(self._batch.endpoint, model)
            except ServiceError as error:
                code = "model_not_found" if isinstance(error, ModelNotFound) else "invalid_request"
                errors.append(BatchError(code=code, message=error.message, param="body.model", line=line))
        return errors

    # --- running ---

    async def _run_lines(self, file: OpenFile) -> None:
        async with self._in.store.reading() as repositories:
            done = await repositories.batches.lines(self._batch.id)
        feeding = asyncio.create_task(self._feed(file, done), name=f"{self._batch.id} lines")
        try:
            while not feeding.done() and not await self._is_over():
                await asyncio.wait([feeding], timeout=POLL_S)
        finally:
            feeding.cancel()
            await asyncio.wait([feeding])
        await self._in.results.settle()
        if not feeding.cancelled():
            _raise(feeding.exception())

    async def _is_over(self) -> bool:
        """Whether no more lines are to run."""
        if time.time() >= self._batch.expires_at:
            return True
        with suppress(Unavailable):
            async with self._in.store.reading() as repositories:
                status = await repositories.batches.status(self._batch.id, self._in.writer)
            if status is None:
                raise Lost
            return status == CANCELLING
        return False

    async def _feed(self, file: OpenFile, done: set[int]) -> None:
        async with asyncio.TaskGroup() as tasks, aclosing(self._lines(file)) as lines:
            async for line in lines:
                if line.number not in done:
                    slot = await self._in.capacity.take()
                    task = tasks.create_task(self._run_line(line, slot))
                    task.add_done_callback(slot.task_ended)

    async def _lines(self, file: OpenFile) -> AsyncGenerator[Line, None]:
        place: Place | None = Place()
        while place:
            chunk = await self._read(file, place)
            for raw in chunk.lines:
                yield parse(raw, self._batch.endpoint, self._in.limits)
            place = chunk.next

    async def _read(self, file: OpenFile, place: Place) -> Chunk:
        """Through outages of the store: the lines that run need not begin again."""
        while True:
            try:
                return await file.apply(read_chunk, place, self._in.limits)
            except Unavailable:
                await asyncio.sleep(RETRY_S)

    async def _run_line(self, line: Line, slot: Slot) -> None:
        with collecting() as usage:
            answer = await self._answer(line)
        slot.release()
        result = LineResult(
            self._batch.id,
            line.number,
            failed=answer.status != OK,
            data=answered(line.custom_id, answer),
            counts=counts_of(usage, answer.body),
            usage=usage,
        )
        while True:
            try:
                return await self._in.results.add(result)
            except Unavailable:
                await asyncio.sleep(RETRY_S)

    async def _answer(self, line: Line) -> LineAnswer:
        batch = self._batch
        while True:
            try:
                return await self._in.answer(batch.endpoint, line, batch.owner, f"{batch.id}:{line.number}")
            except TryLater as refusal:
                await asyncio.sleep(min(refusal.retry_after, MAX_WAIT_S))

    # --- finishing ---

    async def _finish(self, file: OpenFile) -> None:
        def begin(batch: BatchRow) -> None:
            if batch.status == IN_PROGRESS:
                enter(batch, FINALIZING)

        batch = await self._update(begin)
        if batch.completed + batch.failed == batch.total and batch.status != CANCELLING:
            await self._end(COMPLETED, [], None)
            return
        status = CANCELLED if batch.status == CANCELLING else EXPIRED
        missing = await self._not_executed(file, *NOT_EXECUTED[status]) if batch.total else []
        await self._end(status, missing, None)

    async def _not_executed(self, file: OpenFile, code: str, message: str) -> list[str]:
        async with self._in.store.reading() as repositories:
            done = await repositories.batches.lines(self._batch.id)
        lines = self._lines(file)
        return [not_executed(each.custom_id, code, message) async for each in lines if each.number not in done]

    async def _end(self, status: str, missing: Sequence[str], errors: Sequence[BatchError] | None) -> None:
        """`missing`: lines of the error file for what was not executed."""
        with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as failed:
            await self._write_results(output, failed)
            await asyncio.to_thread(_write_lines, failed, missing)
            output_id = await self._prepare(output, "output")
            error_id = await self._prepare(failed, "error")
        await to_its_end(self._store_end(status, output_id, error_id, errors))
        logger.info("batch %s: %s", self._batch.id, status)

    async def _write_results(self, output: BinaryIO, errors: BinaryIO) -> None:
        last = 0
        while True:
            async with self._in.store.reading() as repositories:
                found = await repositories.batches.results(self._batch.id, after=last, limit=READ_RESULTS)
            if not found:
                return
            last = found[-1].line
            await asyncio.to_thread(_write_lines, output, [each.data for each in found if not each.failed])
            await asyncio.to_thread(_write_lines, errors, [each.data for each in found if each.failed])

    async def _prepare(self, source: BinaryIO, what: str) -> str | None:
        if not (size := source.tell()):
            return None
        name = f"{self._batch.id}_{what}.jsonl"
        new = NewFile(filename=name, purpose="batch_output", source=source, bytes=size)
        return await to_its_end(self._in.files.prepare(self._batch.owner, new))

    async def _store_end(
        self, status: str, output_id: str | None, error_id: str | None, errors: Sequence[BatchError] | None
    ) -> None:
        """The files are there, and the results gone, in the transaction that ends the batch."""
        async with self._in.store.writing() as repositories:
            batch = await self._own(repositories)
            for file_id in filter(None, (output_id, error_id)):
                await finish_upload(repositories, file_id, batch.output_expires_after_s)
            batch.output_file_id, batch.error_file_id = output_id, error_id
            batch.errors = [each.model_dump() for each in errors] if errors else None
            batch.ended_at, batch.writer = time.time(), None
            enter(batch, status)
            await repositories.batches.delete_results(batch.id)

    async def _update(self, change: Callable[[BatchRow], None]) -> BatchRow:
        self._batch = await to_its_end(self._changed_row(change))
        return self._batch

    async def _changed_row(self, change: Callable[[BatchRow], None]) -> BatchRow:
        async with self._in.store.writing() as repositories:
            batch = await self._own(repositories)
            change(batch)
        return batch

    async def _own(self, repositories: Repositories) -> BatchRow:
        batch = await repositories.batches.lock_own(self._batch.id, self._in.writer)
        if batch is None:
            raise Lost
        return batch


def enter(batch: BatchRow, status: str) -> None:
    batch.status = status
    batch.times = {**batch.times, status: time.time()}


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Awaits what must not be cut short; a cancellation is raised after it."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        raise


def _write_lines(file: BinaryIO, lines: Iterable[str]) -> None:
    file.writelines(f"{line}\n".encode() for line in lines)


def _raise(error: BaseException | None) -> None:
    """Of the lines that have failed together, the error of one."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if error is not None:
        raise error
