"""SQLite's files are for the user who runs the service, and for nobody else on the machine."""

import logging
import os
import threading
from functools import cache

logger = logging.getLogger(__name__)

PRIVATE = 0o600
BESIDE = ("", "-wal", "-shm", "-journal")  # SQLite gives new ones the mode of the file itself
_creating = threading.Lock()


def make_private(path: str) -> None:
    """Creates the file, or takes it from other users. What cannot be opened is left to SQLite, which says why."""
    if not _create(path):
        for suffix in BESIDE:
            _tighten(path + suffix)


def _create(path: str) -> bool:
    # one at a time: closing a file drops all locks of this process on it, SQLite's in another thread among them
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
        _take_away(path, mode)


def _take_away(path: str, mode: int) -> None:
    try:
        os.chmod(path, mode & PRIVATE)
        logger.warning(
            "%s had mode %04o, other users could read what is in it: it has %04o", path, mode, mode & PRIVATE
        )
    except OSError as error:  # somebody else's file, or a file system without modes
        _complain(path, f"{mode:04o}", error.strerror)


@cache  # once, not for every connection
def _complain(path: str, mode: str, why: str | None) -> None:
    logger.warning("%s has mode %s, and other users may read what is in it: %s", path, mode, why)
