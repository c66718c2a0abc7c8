"""What is in files: one file of the folder for each, by its id. Replicas share the folder."""

import asyncio
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

COPIED_BYTES = 1024 * 1024  # at once


class FileContents:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, file_id: str) -> Path:
        return self._folder / file_id

    async def write(self, file_id: str, source: BinaryIO) -> None:
        """Durable on return, and whole whenever it is there. Raises OSError."""
        await asyncio.to_thread(self.copy_from, file_id, source)

    async def delete(self, file_ids: Iterable[str]) -> None:
        await asyncio.to_thread(self._delete, list(file_ids))

    def copy_from(self, file_id: str, source: BinaryIO) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path, partial = self.path(file_id), self._partial(file_id)
        source.seek(0)
        with open(partial, "wb", opener=_private) as target:
            shutil.copyfileobj(source, target, COPIED_BYTES)
            target.flush()
            os.fsync(target.fileno())
        partial.replace(path)
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name itself
        finally:
            os.close(folder)

    def _delete(self, file_ids: list[str]) -> None:
        for file_id in file_ids:
            self.path(file_id).unlink(missing_ok=True)
            self._partial(file_id).unlink(missing_ok=True)

    def _partial(self, file_id: str) -> Path:
        return self._folder / f"{file_id}.partial"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
