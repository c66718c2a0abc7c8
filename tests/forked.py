"""Services as children of the fork server: the part of `subprocess.Popen` that tests use."""

import os
import pickle
import select
import signal
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import BinaryIO, Protocol

from tests.fork_server import NUMBER, Start

ROOT = Path(__file__).parents[1]


class Process(Protocol):
    """What `subprocess.Popen` and a forked process have in common."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def wait(self, timeout: float | None = None) -> int: ...

    def send_signal(self, signal: int, /) -> None: ...

    def kill(self) -> None: ...


class ForkedProcess:
    def __init__(self, report: socket.socket) -> None:
        self._report = report
        self.returncode: int | None = None
        self.pid = self._number()

    def poll(self) -> int | None:
        if self.returncode is None and select.select([self._report], [], [], 0)[0]:
            self._ended()
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None and not select.select([self._report], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired([f"process {self.pid}"], timeout or 0)
        return self._ended()

    def send_signal(self, signal: int, /) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _ended(self) -> int:
        if self.returncode is None:
            self.returncode = self._number()
            self._report.close()
        return self.returncode

    def _number(self) -> int:
        found: int = NUMBER.unpack(self._report.recv(NUMBER.size))[0]
        return found


class ForkServer:
    """Starts with the first process, in each worker of its own."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # OpenBLAS would start its threads when it is imported
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.fork_server"]
        with theirs:
            self._process = subprocess.Popen(command, cwd=ROOT, env=environment, stdin=theirs)

    def start(self, start: Start, output: BinaryIO) -> ForkedProcess:
        """Its standard output and error are both `output`."""
        report, theirs = socket.socketpair()
        with theirs:
            socket.send_fds(self._control, [pickle.dumps(start)], [theirs.fileno(), output.fileno()])
        return ForkedProcess(report)

    def close(self) -> None:
        self._control.close()
        self._process.wait()


@cache
def fork_server() -> ForkServer:
    return ForkServer()


def pytest_sessionfinish() -> None:
    if fork_server.cache_info().currsize:
        fork_server().close()
