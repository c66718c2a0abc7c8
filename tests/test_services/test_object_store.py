"""Contents of files in an object store: written as a whole or not at all, and read by ranges."""

import asyncio
import io
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import fsspec  # type: ignore[import-untyped]
import pytest

from services.errors import Unavailable
from services.file_contents import ContentsMissing, FileContents
from services.file_stores.base import FileStore
from services.file_stores.folder import FolderStore
from services.file_stores.object_store import READ_BYTES, WRITTEN_BYTES, ObjectStore
from tests.s3_server import BUCKET, S3

MANY = bytes(range(256)) * (3 * WRITTEN_BYTES // 256)


@pytest.fixture(params=["folder", "file", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FileStore:
    match request.param:
        case "folder":
            return FolderStore(tmp_path / "files")
        case "file":
            return ObjectStore(f"file://{tmp_path}/files", {"auto_mkdir": True})
        case "memory":
            return ObjectStore(f"memory://{tmp_path}", {})
    return ObjectStore(f"s3://{BUCKET}/a/prefix", request.getfixturevalue("s3").options)


class Breaks(io.BytesIO):
    """A source whose end cannot be read."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell() > 2 * WRITTEN_BYTES:
            raise OSError("the disk is gone")
        return super().read(size)


def test_what_is_written_is_read(store: FileStore) -> None:
    store.check()
    store.write("one", io.BytesIO(MANY))
    store.write("two", io.BytesIO(b"first\nsecond\n" + b"x" * 100))
    with store.open("one") as file:
        assert file.read(len(MANY)) == MANY
        file.seek(READ_BYTES - 3)
        assert file.read(6) == MANY[READ_BYTES - 3 : READ_BYTES + 3]
        assert file.tell() == READ_BYTES + 3
    with store.open("two") as file:
        assert [file.readline(50), file.readline(50), file.readline(50)] == [b"first\n", b"second\n", b"x" * 50]
    store.delete(["one", "two", "three"])
    for name in ("one", "two"):
        with pytest.raises(FileNotFoundError):
            store.open(name)


@pytest.mark.parametrize("store", ["folder", "file", "s3"], indirect=True)  # fsspec's memory has what is half written
def test_a_file_is_there_as_a_whole_or_not_at_all(store: FileStore) -> None:
    with pytest.raises(OSError, match="the disk is gone"):
        store.write("one", Breaks(MANY))
    with pytest.raises(FileNotFoundError):
        store.open("one")


def test_a_process_that_dies_leaves_no_parts(s3: S3) -> None:
    """What it has uploaded is removed with the file's row."""
    dead = s3.files.open(f"{BUCKET}/a/one", "wb", block_size=WRITTEN_BYTES, autocommit=False)
    dead.write(MANY)
    other = s3.files.open(f"{BUCKET}/a/one-more", "wb", block_size=WRITTEN_BYTES, autocommit=False)
    other.write(MANY)
    assert s3.unfinished() == ["a/one", "a/one-more"]
    ObjectStore(f"s3://{BUCKET}/a", s3.options).delete(["one"])
    assert s3.unfinished() == ["a/one-more"]
    other.discard()
    dead.closed = other.closed = True  # nothing flushes them any more


def test_a_broken_write_leaves_no_parts(s3: S3) -> None:
    with pytest.raises(OSError, match="the disk is gone"):
        ObjectStore(f"s3://{BUCKET}/a", s3.options).write("one", Breaks(MANY))
    assert s3.unfinished() == []


class Blank(io.RawIOBase):
    """Many zeros, which are nowhere in memory."""

    def __init__(self, size: int) -> None:
        self._left = size

    def readinto(self, buffer: Any) -> int:
        size = min(len(buffer), self._left)
        self._left -= size
        return size

    def readable(self) -> bool:
        return True


def test_a_large_file_is_never_in_memory(tmp_path: Path) -> None:
    """On a disk: a server of S3 in this process would hold it."""
    store, size = ObjectStore(f"file://{tmp_path}", {}), 128 * 1024 * 1024
    tracemalloc.start()
    try:
        source: Any = io.BufferedReader(Blank(size))
        store.write("large", source)
        read = 0
        with store.open("large") as file:
            while piece := file.read(256 * 1024):
                read += len(piece)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert read == size
    assert peak < size // 4


@pytest.mark.parametrize(
    ("url", "options", "says"),
    [
        ("nowhere://a/b", {}, "Protocol not known: nowhere"),
        ("gs://bucket", {}, r"not installed: .*\(parley\[s3\]\)"),
    ],
)
def test_what_fsspec_does_not_know_is_named(url: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        ObjectStore(url, options)


def test_a_bucket_that_is_not_there_is_named_at_the_start(s3: S3) -> None:
    with pytest.raises(OSError, match=r"other/a cannot be used: .*bucket"):
        ObjectStore("s3://other/a", s3.options).check()


class Stalled(FolderStore):
    """Answers when it is let."""

    def __init__(self, folder: Path, wait: Callable[[], object]) -> None:
        super().__init__(folder)
        self._wait = wait

    def open(self, name: str) -> BinaryIO:
        self._wait()
        return super().open(name)


async def test_a_slow_store_holds_up_nothing_else(tmp_path: Path) -> None:
    going = threading.Event()
    contents = FileContents(Stalled(tmp_path, going.wait))
    await contents.write("a", io.BytesIO(b"text"))
    waiting = [asyncio.create_task(contents.open("a")) for _ in range(40)]
    await asyncio.to_thread(bool)  # other threads have work to do
    going.set()
    for each in waiting:
        async with await each as file:
            assert await file.read(10) == b"text"
    contents.close()


async def test_errors_are_those_of_the_service(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    contents = FileContents(ObjectStore(f"memory://{tmp_path}", {}))
    await contents.write("a", io.BytesIO(b"text"))
    file = await contents.open("a")
    memory.rm(f"{tmp_path}/a")
    with pytest.raises(ContentsMissing):
        await file.read(4)
    with pytest.raises(ContentsMissing):
        await contents.open("a")
    await file.close()
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(Unavailable):
        await FileContents(FolderStore(tmp_path / "file")).write("a", io.BytesIO(b"text"))
    contents.close()
