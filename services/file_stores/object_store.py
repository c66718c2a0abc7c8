"""A store that fsspec reaches by a URL: S3 and what speaks its protocol, and whatever else has an fsspec package.

What is read and written goes in pieces, so that no file is in memory as a whole.
"""

import io
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, BinaryIO, cast
from uuid import uuid4

import fsspec  # type: ignore[import-untyped]
from fsspec.spec import AbstractBufferedFile  # type: ignore[import-untyped]

WRITTEN_BYTES = 8 * 1024 * 1024  # a part of S3's uploads: 10,000 of them are 78 GiB
READ_BYTES = 2 * 1024 * 1024  # of a range
COPIED_BYTES = 1024 * 1024
# a package's own listings would hide what another replica has written
OPTIONS = {"use_listings_cache": False}


class ObjectStore:
    """Raises ValueError for a URL or options that fsspec cannot use."""

    def __init__(self, url: str, options: Mapping[str, Any]) -> None:
        self._files, root = _file_system(url, {**OPTIONS, **options})
        self._root = root.rstrip("/")

    def check(self) -> None:
        """Writes, reads and deletes, which is all that is needed later on."""
        name = f"check-{uuid4().hex}"
        try:
            self.write(name, io.BytesIO(b"check"))
            with self.open(name) as file:
                file.read()
            self.delete([name])
        except OSError as error:
            raise OSError(f"PARLEY_FILES__URL: {self._root} cannot be used: {_line(error)}") from error

    def write(self, name: str, source: BinaryIO) -> None:
        with _as_os_errors():
            # not committed by leaving a `with`, which fsspec does also after an error
            target = self._files.open(self._path(name), "wb", block_size=WRITTEN_BYTES, autocommit=False)
            try:
                shutil.copyfileobj(source, target, COPIED_BYTES)
                target.close()
            except BaseException:
                _discard(target)
                raise
            target.commit()

    def open(self, name: str) -> BinaryIO:
        with _as_os_errors():
            size = self._files.info(self._path(name))["size"]
        return cast(BinaryIO, io.BufferedReader(_Ranges(self._files, self._path(name), size), READ_BYTES))

    def delete(self, names: Sequence[str]) -> None:
        with _as_os_errors():
            for name in names:
                with suppress(FileNotFoundError):
                    self._files.rm_file(self._path(name))
                self._abort_uploads(self._path(name))

    def _abort_uploads(self, path: str) -> None:
        """Of a process that was killed while it wrote: nobody sees them, but S3 keeps their parts, at a price."""
        call: Callable[..., Any] | None = getattr(self._files, "call_s3", None)
        if call is None:
            return
        bucket, _, key = path.partition("/")
        for each in call("list_multipart_uploads", Bucket=bucket, Prefix=key).get("Uploads") or ():
            if each["Key"] == key:
                call("abort_multipart_upload", Bucket=bucket, Key=key, UploadId=each["UploadId"])

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


class _Ranges(io.RawIOBase):
    """A file by ranges of it: between two of them nothing is open."""

    def __init__(self, files: Any, path: str, size: int) -> None:
        self._files = files
        self._path = path
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + len(buffer), self._size)
        if self._at >= end:
            return 0
        with _as_os_errors():
            data = self._files.cat_file(self._path, start=self._at, end=end)
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)


def _file_system(url: str, options: Mapping[str, Any]) -> tuple[Any, str]:
    try:
        files, root = fsspec.url_to_fs(url, **options)
    except ImportError as error:
        raise ValueError(
            f"PARLEY_FILES__URL needs a package that is not installed: {_line(error)} (parley[s3])"
        ) from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"PARLEY_FILES__URL or PARLEY_FILES__OPTIONS: {_line(error)}") from None
    return files, str(root)


def _discard(target: Any) -> None:
    target.discard()
    if isinstance(target, AbstractBufferedFile):
        target.closed = True  # it would be flushed when it is collected


@contextmanager
def _as_os_errors() -> Iterator[None]:
    """fsspec's packages translate most errors of their clients, but an outage of the network is raised as it is, and
    the clients' errors have no class in common."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        raise OSError(_line(error)) from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__
