"""Files of a project: uploaded once, and named by their id in later requests."""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import BinaryIO, cast
from uuid import uuid4

from database.file_models import UPLOADING
from database.file_models import File as FileRow
from database.repositories import Repositories
from database.session import Database
from schemas.file_schema import MAX_FILENAME, DeletedFile, File, StoredPurpose
from schemas.page_schema import Order, Page, page
from services.errors import InvalidRequest, NotFound, TooLarge, Unavailable
from services.file_contents import FileContents, OpenFile
from services.history import audit
from services.history.store import Store

logger = logging.getLogger(__name__)

UPLOAD_S = 3600.0  # after which a row without contents is what a crash has left
SWEEP_S = 60.0
SWEPT = 500  # files at once


@dataclass(frozen=True, slots=True)
class FileLimits:
    max_bytes: int
    max_total_bytes: int  # of all files of an owner

    async def require_room(self, repositories: Repositories, owner: str, size: int, *, param: str) -> None:
        """Raises TooLarge where an owner's files, and the bytes that pending uploads have reserved, leave less."""
        stored = await repositories.files.total_bytes(owner)
        reserved = await repositories.uploads.pending_bytes(owner, time.time())
        if stored + reserved + size > self.max_total_bytes:
            raise TooLarge(
                f"All files of a project have {self.max_total_bytes} bytes at most: delete some", param=param
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class NewFile:
    filename: str
    purpose: StoredPurpose
    source: BinaryIO
    bytes: int
    expires_after_s: int | None = None


@dataclass(frozen=True, slots=True)
class FileQuery:
    limit: int
    order: Order = "desc"
    after: str | None = None
    purpose: str | None = None


@dataclass(frozen=True, slots=True)
class Content:
    """To be closed by whoever has it."""

    file: OpenFile
    id: str
    filename: str
    bytes: int
    created_at: float


class FileService:
    def __init__(self, database: Database, contents: FileContents, limits: FileLimits) -> None:
        self._store = Store(database)
        self._contents = contents
        self._limits = limits
        self._sweeper: asyncio.Task[None] | None = None
        self.sweeps: list[Callable[[], Awaitable[None]]] = [self.sweep]

    async def check(self) -> None:
        """At the start, whether contents can be kept. Raises OSError."""
        await self._contents.check()

    def start(self) -> None:
        self._sweeper = asyncio.create_task(self._sweep_forever(), name="file sweeper")

    async def stop(self) -> None:
        if self._sweeper:
            self._sweeper.cancel()
            await asyncio.wait([self._sweeper])
        self._contents.close()

    async def create(self, owner: str, new: NewFile) -> File:
        """Raises TooLarge, InvalidRequest, Unavailable."""
        self._check(new)
        row = _row(owner, new)
        async with self._store.writing() as repositories:
            await self._limits.require_room(repositories, owner, new.bytes, param="file")
            await repositories.files.add(row)
        await self._write(row.id, new.source)
        async with self._store.writing() as repositories:
            await finish_upload(repositories, row.id, new.expires_after_s)
        row.expires_at = None if new.expires_after_s is None else row.created_at + new.expires_after_s
        return _file(row)

    async def prepare(self, owner: str, new: NewFile) -> str:
        """Writes a file that is there once `finish_upload` is called with its id; without that it is swept. Whatever
        the size: what a batch has made must not be lost."""
        row = _row(owner, new)
        async with self._store.writing() as repositories:
            await repositories.files.add(row)
        await self._write(row.id, new.source)
        return row.id

    async def _write(self, file_id: str, source: BinaryIO) -> None:
        try:
            await self._contents.write(file_id, source)
        except Unavailable:
            with suppress(Unavailable):  # the sweep tries again
                await self._remove([file_id])
            raise

    def _check(self, new: NewFile) -> None:
        if not new.filename or len(new.filename) > MAX_FILENAME or "\0" in new.filename:
            raise InvalidRequest(f"'%s' needs a name of 1 to {MAX_FILENAME} characters", "file")
        if not new.bytes:
            raise InvalidRequest("'%s' is empty", "file")
        if new.bytes > self._limits.max_bytes:
            raise TooLarge(f"'%s' has {new.bytes} bytes, at most {self._limits.max_bytes} are taken", "file")

    async def get(self, file_id: str, owner: str) -> File:
        return _file(await self._row(file_id, owner))

    async def page(self, owner: str, query: FileQuery) -> Page[File]:
        now = time.time()
        async with self._store.reading() as repositories:
            after = query.after and await repositories.files.get(query.after, owner, now=now)
            if query.after and not after:
                raise InvalidRequest("'%s' is not a file of this project", "after")
            found = await repositories.files.page(
                owner,
                now=now,
                limit=query.limit + 1,
                order=query.order,
                after=after or None,
                purpose=query.purpose,
            )
        return page([_file(row) for row in found], [row.id for row in found], query.limit)

    async def content(self, file_id: str, owner: str) -> Content:
        row = await self._row(file_id, owner)
        return Content(await self._contents.open(row.id), row.id, row.filename, row.bytes, row.created_at)

    async def delete(self, file_id: str, owner: str) -> DeletedFile:
        async with self._store.writing() as repositories:
            if not await repositories.files.mark_deleted(file_id, owner, now=time.time()):
                raise file_not_found(file_id)
            audit.record(repositories, owner, "file.deleted", file_id)
        with suppress(Unavailable):  # the sweep tries again
            await self._remove([file_id])
        return DeletedFile(id=file_id)

    async def sweep(self) -> None:
        """Removes what has expired, and what a crash has left."""
        async with self._store.reading() as repositories:
            expired = await repositories.files.expired(time.time(), SWEPT)
        if expired:
            await self._remove(list(expired))

    async def _row(self, file_id: str, owner: str) -> FileRow:
        async with self._store.reading() as repositories:
            found = await repositories.files.get(file_id, owner, now=time.time())
        if found is None:
            raise file_not_found(file_id)
        return found

    async def _remove(self, file_ids: list[str]) -> None:
        """Contents first: a crash between leaves the row, and the sweep comes back to it."""
        await self._contents.delete(file_ids)
        async with self._store.writing() as repositories:
            await repositories.files.remove(file_ids)

    async def _sweep_forever(self) -> None:
        while True:
            try:
                for sweep in self.sweeps:
                    await sweep()
            except Unavailable:  # the checkpoints log an outage
                pass
            except Exception:
                logger.exception("Removing expired files failed; retrying")
            await asyncio.sleep(SWEEP_S)


def _row(owner: str, new: NewFile) -> FileRow:
    now = time.time()
    return FileRow(
        id=f"file-{uuid4().hex}",
        owner=owner,
        purpose=new.purpose,
        filename=new.filename,
        bytes=new.bytes,
        status=UPLOADING,
        created_at=now,
        expires_at=now + UPLOAD_S,
    )


async def finish_upload(repositories: Repositories, file_id: str, expires_after_s: int | None) -> None:
    if not await repositories.files.finish_upload(file_id, expires_after_s):
        raise Unavailable("The upload took too long")  # the sweep has removed it


def _file(row: FileRow) -> File:
    return File(
        id=row.id,
        bytes=row.bytes,
        created_at=int(row.created_at),
        expires_at=None if row.expires_at is None else int(row.expires_at),
        filename=row.filename,
        purpose=cast(StoredPurpose, row.purpose),  # the table has what this service wrote
    )


def file_not_found(file_id: str) -> NotFound:
    return NotFound(f"No file with id '{file_id[:64]}'", param="file_id")
