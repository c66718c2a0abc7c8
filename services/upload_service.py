"""Uploads in parts: a file that is too large for one request, or is sent over a line that breaks."""

import hashlib
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, BinaryIO, Literal, cast
from uuid import uuid4

from database.repositories import Repositories
from database.session import Database
from database.upload_models import CANCELLED, COMPLETED, PENDING
from database.upload_models import Upload as UploadRow
from database.upload_models import UploadPart as PartRow
from schemas.file_schema import File, Purpose
from schemas.upload_schema import NewUpload, Upload, UploadCompletion, UploadPart
from services.errors import Conflict, InvalidRequest, NotFound, TooLarge, Unavailable
from services.file_contents import FileContents
from services.file_service import FileLimits, FileService, NewFile, finish_upload
from services.history.store import Store

Status = Literal["pending", "completed", "cancelled", "expired"]

TTL_S = 3600.0  # of an upload
KEPT_S = 86_400.0  # for which an upload that has ended is known
MAX_PART_BYTES = 64 * 1024 * 1024
MAX_PARTS = 10_000
SWEPT = 500  # parts at once
COPIED_BYTES = 1024 * 1024


class UploadService:
    """`limits` are of an upload, and of all files of an owner."""

    def __init__(self, database: Database, contents: FileContents, files: FileService, limits: FileLimits) -> None:
        self._store = Store(database)
        self._contents = contents
        self._files = files
        self._limits = limits
        files.sweeps.append(self.sweep)

    async def create(self, request: NewUpload, owner: str) -> Upload:
        """Reserves its bytes."""
        if request.bytes > self._limits.max_bytes:
            raise TooLarge(f"'%s' is {request.bytes}, at most {self._limits.max_bytes} are taken", "bytes")
        now = time.time()
        row = UploadRow(
            id=f"upload_{uuid4().hex}",
            owner=owner,
            purpose=request.purpose,
            filename=request.filename,
            bytes=request.bytes,
            status=PENDING,
            created_at=now,
            expires_at=now + TTL_S,
            file_expires_after_s=request.expires_after.seconds if request.expires_after else None,
        )
        async with self._store.writing() as repositories:
            await self._limits.require_room(repositories, owner, request.bytes, param="bytes")
            await repositories.uploads.add(row)
        return _upload(row)

    async def add_part(self, upload_id: str, owner: str, source: BinaryIO, size: int) -> UploadPart:
        part = PartRow(id=f"part_{uuid4().hex}", upload_id=upload_id, bytes=size, created_at=time.time())
        async with self._store.writing() as repositories:
            upload = await _pending(repositories, upload_id, owner)
            if not 0 < size <= MAX_PART_BYTES:
                raise InvalidRequest(f"'%s' must have 1 to {MAX_PART_BYTES} bytes", "data")
            parts = await repositories.uploads.parts(upload_id)
            if sum(each.bytes for each in parts) + size > upload.bytes or len(parts) >= MAX_PARTS:
                raise InvalidRequest(f"'%s': the upload has {upload.bytes} bytes in {MAX_PARTS} parts at most", "data")
            await repositories.uploads.add(part)
        try:
            await self._contents.write(part.id, source)
        except Unavailable:
            await self._remove([part.id])
            raise
        return UploadPart(id=part.id, created_at=int(part.created_at), upload_id=upload_id)

    async def complete(self, upload_id: str, owner: str, request: UploadCompletion) -> Upload:
        async with self._store.writing() as repositories:
            upload = await _pending(repositories, upload_id, owner)
            sizes = {each.id: each.bytes for each in await repositories.uploads.parts(upload_id)}
        _check_parts(request.part_ids, sizes, upload.bytes)
        with tempfile.TemporaryFile() as whole:
            md5 = await self._join(request.part_ids, whole)
            if request.md5 and request.md5.lower() != md5:
                raise InvalidRequest("'%s' is not that of the parts in this order", "md5")
            purpose = cast(Purpose, upload.purpose)  # the table has what this service wrote
            new = NewFile(filename=upload.filename, purpose=purpose, source=whole, bytes=upload.bytes)
            file_id = await self._files.prepare(owner, new)
        async with self._store.writing() as repositories:
            upload = await _pending(repositories, upload_id, owner)
            upload.status = COMPLETED
            await finish_upload(repositories, file_id, upload.file_expires_after_s)
        await self._remove(list(sizes))
        return _upload(upload, await self._files.get(file_id, owner))

    async def _join(self, part_ids: Sequence[str], target: BinaryIO) -> str:
        """Writes all parts behind each other; returns their MD5."""
        digest = hashlib.md5(usedforsecurity=False)
        for each in part_ids:
            async with await self._contents.open(each) as part:
                await part.apply(_append, target, digest)
        return digest.hexdigest()

    async def cancel(self, upload_id: str, owner: str) -> Upload:
        async with self._store.writing() as repositories:
            upload = await _pending(repositories, upload_id, owner)
            upload.status = CANCELLED
            parts = [each.id for each in await repositories.uploads.parts(upload_id)]
        await self._remove(parts)
        return _upload(upload)

    async def sweep(self) -> None:
        """Removes what has expired, and what a crash has left."""
        now = time.time()
        async with self._store.reading() as repositories:
            parts = await repositories.uploads.unneeded_parts(now, SWEPT)
        await self._remove(parts)
        async with self._store.writing() as repositories:
            await repositories.uploads.forget(now - KEPT_S)

    async def _remove(self, part_ids: Sequence[str]) -> None:
        """Contents first: a crash between leaves the rows, and the sweep comes back to them."""
        if not part_ids:
            return
        with suppress(Unavailable):  # the sweep tries again
            await self._contents.delete(part_ids)
            async with self._store.writing() as repositories:
                await repositories.uploads.remove_parts(part_ids)


async def _pending(repositories: Repositories, upload_id: str, owner: str) -> UploadRow:
    """Locked."""
    upload = await repositories.uploads.lock(upload_id, owner)
    if upload is None:
        raise NotFound(f"No upload with id '{upload_id[:64]}'", param="upload_id")
    if (status := _status(upload)) != PENDING:
        raise Conflict(f"The upload is {status}", param="upload_id")
    return upload


def _status(upload: UploadRow) -> Status:
    if upload.status == PENDING and upload.expires_at <= time.time():
        return "expired"
    return cast(Status, upload.status)  # the table has what this service wrote


def _check_parts(part_ids: Sequence[str], sizes: dict[str, int], size: int) -> None:
    if len(set(part_ids)) < len(part_ids):
        raise InvalidRequest("'%s' names a part twice", "part_ids")
    if any(each not in sizes for each in part_ids):
        raise InvalidRequest("'%s' names a part that is none of this upload", "part_ids")
    if (total := sum(sizes[each] for each in part_ids)) != size:
        raise InvalidRequest(f"'%s': these parts have {total} bytes, the upload {size}", "part_ids")


def _append(part: BinaryIO, target: BinaryIO, digest: Any) -> None:
    while piece := part.read(COPIED_BYTES):
        digest.update(piece)
        target.write(piece)


def _upload(row: UploadRow, file: File | None = None) -> Upload:
    return Upload(
        id=row.id,
        bytes=row.bytes,
        created_at=int(row.created_at),
        expires_at=int(row.expires_at),
        filename=row.filename,
        purpose=cast(Purpose, row.purpose),
        status=_status(row),
        file=file,
    )
