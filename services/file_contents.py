"""What is in files, by their ids: read and written by threads of their own, so that a slow store delays nobody else."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import TracebackType
from typing import BinaryIO, Concatenate, ParamSpec, Self, TypeVar

from services.errors import ServiceError, Unavailable
from services.file_stores.base import FileStore

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 16
RETRY_S = 60


class ContentsMissing(ServiceError):
    def __init__(self) -> None:
        super().__init__("The contents of the file are missing on the server")


class FileContents:
    """All raise Unavailable."""

    def __init__(self, store: FileStore) -> None:
        self._store = store
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="files")

    async def check(self) -> None:
        """At the start. Raises OSError."""
        await _run(self._threads, self._store.check)

    async def write(self, file_id: str, source: BinaryIO) -> None:
        """Durable on return, and whole whenever it is there."""
        with _as_unavailable("stored", file_id):
            await _run(self._threads, _write, self._store, file_id, source)

    async def open(self, file_id: str) -> "OpenFile":
        """Raises ContentsMissing."""
        with _as_unavailable("read", file_id):
            return OpenFile(file_id, await _run(self._threads, self._store.open, file_id), self._threads)

    async def delete(self, file_ids: Iterable[str]) -> None:
        with _as_unavailable("deleted", "files"):
            await _run(self._threads, self._store.delete, list(file_ids))

    def close(self) -> None:
        self._threads.shutdown(wait=False)


class OpenFile:
    """For one reader at a time."""

    def __init__(self, file_id: str, file: BinaryIO, threads: ThreadPoolExecutor) -> None:
        self._file_id = file_id
        self._file = file
        self._threads = threads

    async def apply(self, read: Callable[Concatenate[BinaryIO, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Raises Unavailable, ContentsMissing."""
        with _as_unavailable("read", self._file_id):
            return await _run(self._threads, read, self._file, *args, **kwargs)

    async def read(self, size: int) -> bytes:
        return await self.apply(_read, size)

    async def seek(self, offset: int) -> None:
        await self.apply(_seek, offset)

    async def close(self) -> None:
        await _run(self._threads, self._file.close)  # a read that was cancelled may be running

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


async def _run(threads: ThreadPoolExecutor, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    return await asyncio.get_running_loop().run_in_executor(threads, partial(function, *args, **kwargs))


def _write(store: FileStore, file_id: str, source: BinaryIO) -> None:
    source.seek(0)
    store.write(file_id, source)


def _read(file: BinaryIO, size: int) -> bytes:
    return file.read(size)


def _seek(file: BinaryIO, offset: int) -> None:
    file.seek(offset)


@contextmanager
def _as_unavailable(what: str, file_id: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        if what != "read":
            raise _unavailable(what, file_id, error) from error
        logger.error("The contents of %s are missing: do all processes share PARLEY_FILES__FOLDER?", file_id)
        raise ContentsMissing from error
    except OSError as error:
        raise _unavailable(what, file_id, error) from error


def _unavailable(what: str, file_id: str, error: OSError) -> Unavailable:
    logger.error("%s cannot be %s now: %s", file_id, what, error)
    return Unavailable(f"The file cannot be {what} now", retry_after=RETRY_S)
