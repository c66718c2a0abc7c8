"""A folder with one file for each name. Replicas share it."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

COPIED_BYTES = 1024 * 1024  # at once


class FolderStore:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def check(self) -> None:
        """The folder is made by the first file."""

    def write(self, name: str, source: BinaryIO) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        partial = self._partial(name)
        with open(partial, "wb", opener=_private) as target:
            shutil.copyfileobj(source, target, COPIED_BYTES)
            target.flush()
            os.fsync(target.fileno())
        partial.replace(self._folder / name)
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)  # the name itself
        finally:
            os.close(folder)

    def open(self, name: str) -> BinaryIO:
        return (self._folder / name).open("rb")

    def delete(self, names: Sequence[str]) -> None:
        for name in names:
            (self._folder / name).unlink(missing_ok=True)
            self._partial(name).unlink(missing_ok=True)

    def _partial(self, name: str) -> Path:
        return self._folder / f"{name}.partial"


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
