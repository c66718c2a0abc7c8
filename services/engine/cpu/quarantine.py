"""Compiled code that took its process along when it was tried is not tried again: it would end every later start.

A mark beside the package says so. It is written before the first use in this process and taken away after it, so it
stays only where the process did not come back from that.
"""

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

logger = logging.getLogger(__name__)

# what native code dies of; SIGKILL is somebody else's doing, as when there is no memory
CRASHES = {signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL}


class Quarantine:
    def __init__(self, file: Path) -> None:
        self._file = file
        self._mark = file.with_suffix(".crashed")
        self._is_ours = False  # the mark is this process's, which is using the package for the first time

    def holds(self) -> bool:
        """Whether the package has crashed before, which is logged; waits for other processes that try it now."""
        with self._alone():
            found = self._mark.exists()
        if found:
            logger.warning("steps stay eager: the compiled one crashed; it is tried again without %s", self._mark)
        return found

    def use(self, first: Callable[[], None]) -> None:
        with self._alone():
            if self._mark.exists():
                return
            self._is_ours = self.mark()
            try:
                first()
            finally:
                self.abandon()

    def mark(self) -> bool:
        try:
            self._mark.touch()
        except OSError:  # a folder that cannot be written: what is in it was tried where it was made
            return False
        return True

    def abandon(self) -> None:
        """The process goes by its own will."""
        if self._is_ours:
            self._is_ours = False
            self._mark.unlink(missing_ok=True)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = FileLock(f"{self._file}.trial.lock")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except OSError:  # as above
            yield
            return
        try:
            yield
        finally:
            lock.release()
