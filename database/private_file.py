"""Restricts SQLite's files to the user who runs the service."""

import logging
import os
import threading
from functools import cache

logger = logging.getLogger(__name__)

PRIVATE = 0o600
SUFFIXES = ("", "-wal", "-shm", "-journal")  # SQLite creates them with the mode of the database file
_creating = threading.Lock()


def make_private(path: str) -> None:
    """Creates the file, or removes the permissions of others. If it cannot be opened, SQLite reports the error."""
    if not _create(path):
        for suffix in SUFFIXES:
            _tighten(path + suffix)


def _create(path: str) -> bool:
    # one at a time: closing a file drops all POSIX locks of this process on it, also SQLite's in other threads
    with _creating:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, PRIVATE))
        except OSError:
            return False
        return True


def _tighten(path: str) -> None:
    try:
        mode = os.stat(path).st_mode & 0o777
    except OSError:
        return
    if mode & ~PRIVATE:
        _restrict(path, mode)


def _restrict(path: str, mode: int) -> None:
    try:
        os.chmod(path, mode & PRIVATE)
        logger.warning("%s had mode %04o, readable by other users; changed to %04o", path, mode, mode & PRIVATE)
    except OSError as error:  # owned by another user, or a file system without modes
        _warn_once(path, f"{mode:04o}", error.strerror)


@cache  # once per file, not per connection
def _warn_once(path: str, mode: str, why: str | None) -> None:
    logger.warning("%s has mode %s and may be readable by other users: %s", path, mode, why)
