"""What a store of files' contents does. All of it blocks, and is called in threads (`services/file_contents.py`)."""

from collections.abc import Sequence
from typing import BinaryIO, Protocol


class FileStore(Protocol):
    """Names are ids of files. Everything raises OSError, and FileNotFoundError for contents that are not there."""

    def check(self) -> None:
        """At the start: whether there is any use in going on."""

    def write(self, name: str, source: BinaryIO) -> None:
        """Durable on return, and whole whenever it is there."""

    def open(self, name: str) -> BinaryIO:
        """Buffered, and can be sought in."""

    def delete(self, names: Sequence[str]) -> None:
        """Also what is there by half, and without an error for what is not there."""
