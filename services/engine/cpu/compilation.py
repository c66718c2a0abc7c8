"""Gets a step compiled: from the disk, or by a process of its own, at a low priority, while others are served."""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Protocol

from filelock import FileLock, Timeout

from services.engine.cpu import kernels
from services.engine.cpu.quarantine import CRASHES, Quarantine
from services.engine.cpu.threads import fit_container

logger = logging.getLogger(__name__)

POLL_S = 1.0  # between looks at what another process compiles


class CompilationPlan(Protocol):
    """What a process of its own must know to compile something."""

    maker: str  # the module that has `make(file, json)`

    def to_json(self) -> str: ...


class Compilation:
    """Gets a compiled step from the disk or from a process that makes one, and hands it to `ready`, from a thread."""

    def __init__(self, file: Path, plan: CompilationPlan, ready: Callable[[Path], None]) -> None:
        self.file = file
        self.plan = plan
        self._ready = ready
        self._quarantine = Quarantine(file)
        self._worker: subprocess.Popen[bytes] | None = None
        self._stopped = threading.Event()
        self._adopted = False
        self._after: Compilation | None = None
        self._thread = threading.Thread(target=self._run, name="compilation", daemon=True)

    def start(self, after: "Compilation | None" = None) -> None:
        """`after`: one that comes first; where it does not succeed, this one would not either."""
        self._after = after
        self._thread.start()

    @property
    def has_started(self) -> bool:
        return self._thread.ident is not None

    def stop(self) -> None:
        self._stopped.set()
        self._quarantine.abandon()
        if self._worker is not None:
            self._worker.terminate()

    def wait(self) -> bool:
        """Waits until it is decided, and says whether the compiled step is used."""
        self._thread.join()
        return self._adopted

    def _run(self) -> None:
        try:
            if (self._after and not self._after.wait()) or self._quarantine.holds():
                return
            if not self._is_made:
                self._make()
            if not self._stopped.is_set() and self._is_made:
                self._quarantine.use(self._adopt)
        except Exception:
            logger.exception("steps stay eager: the compiled one cannot be used")

    def _adopt(self) -> None:
        self._ready(self.file)
        self._adopted = True

    @property
    def _is_made(self) -> bool:
        return self.file.exists() and kernels.library_path(self.file.parent).exists()

    def _make(self) -> None:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{self.file}.lock", timeout=0)
        waits = False
        while not self._stopped.is_set():
            try:
                with lock:
                    if not self._is_made and not self._quarantine.holds():
                        self._run_worker()
                    return
            except Timeout:
                if not waits:
                    logger.info("another process is compiling this model; steps stay eager until it has")
                waits = True
                self._stopped.wait(POLL_S)

    def _run_worker(self) -> None:
        command = [sys.executable, "-m", __name__, self.plan.maker, str(self.file), self.plan.to_json()]
        # in a group of its own: a terminal's Ctrl-C is for the server, which then ends the worker. Not in a session of
        # its own: Linux shares processors between sessions (autogroup), whatever the priorities within them are
        self._worker = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, process_group=0)
        _, errors = self._worker.communicate()
        if self._worker.returncode != 0 and not self._stopped.is_set():
            reason = errors.decode(errors="replace").strip().splitlines()[-1:] or ["the compiling process failed"]
            logger.warning("steps stay eager: %s", reason[0])
            if -self._worker.returncode in CRASHES:
                self._quarantine.mark()


def main(maker: str, file: str, plan: str) -> None:
    """The process of its own."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # leaving tidily
    os.nice(10)  # whoever is being served comes first, but not for ever: at 19 a busy server never gets there
    fit_container()  # as many threads as the server: they are part of what is compiled
    import_module(maker).make(Path(file), plan)


if __name__ == "__main__":
    main(*sys.argv[1:])
