"""The process in which grammars are checked, by children that the kernel ends when their time is up.

It reads a vocabulary once and makes the library's tokenizer of it, so that a child begins within milliseconds and costs
next to no memory. For each connection that comes over its standard input (`grammar_checker` holds the other end) there
is a child, which tells its number and then answers one grammar after the other. When that input ends, as it does when
the server dies, all of them end.
"""

import gc
import os
import pickle
import resource
import select
import signal
import socket
import struct
import sys
from contextlib import suppress

from services.engine.base import GrammarSpec
from services.engine.grammar.check import Vocabulary, checked_text
from services.engine.grammar.lark import InvalidGrammar

LENGTH = struct.Struct(">Q")
CHECKED, REFUSED, ENDED = b"+", b"-", b"!"  # what an answer begins with; after the last the number of a signal
TIME_IS_UP = (signal.SIGPROF, signal.SIGALRM)
ABORTED = (signal.SIGABRT, signal.SIGSEGV, signal.SIGBUS)  # by the library: out of memory, or of its stack
MEMORY = 1 << 30  # bytes that a child may take beyond those of this process


def write(connection: socket.socket, data: bytes) -> None:
    connection.sendall(LENGTH.pack(len(data)) + data)


def read(connection: socket.socket) -> bytes:
    """Raises EOFError where it ends too early."""
    return _read(connection, LENGTH.unpack(_read(connection, LENGTH.size))[0])


def _read(connection: socket.socket, size: int) -> bytes:
    data = bytearray(size)
    view, done = memoryview(data), 0
    while done < size:
        done += (count := connection.recv_into(view[done:]))
        if count == 0:
            raise EOFError
    return bytes(data)


class GrammarProcess:
    def __init__(self, control: socket.socket, cpu_s: float, wall_s: float) -> None:
        self._control = control
        self._cpu_s = cpu_s
        self._wall_s = wall_s
        vocabulary: Vocabulary = pickle.loads(read(control))
        self._markers = vocabulary.markers
        self._tokenizer = vocabulary.tokenizer()
        self._running: dict[int, socket.socket] = {}

    def run(self) -> None:
        """Until the control connection ends."""
        wakeup, woken = socket.socketpair()
        woken.setblocking(False)
        signal.set_wakeup_fd(woken.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        gc.freeze()  # children share this memory as long as nobody writes to it
        while True:
            ready, _, _ = select.select([self._control, wakeup], [], [])
            if wakeup in ready:
                wakeup.recv(4096)
                self._reap()
            if self._control in ready and not self._accept():
                return self._end()

    def _accept(self) -> bool:
        message, descriptors, _, _ = socket.recv_fds(self._control, 1, 1)
        for descriptor in descriptors:
            self._begin(socket.socket(fileno=descriptor))
        return bool(message)

    def _begin(self, connection: socket.socket) -> None:
        if pid := os.fork():
            self._running[pid] = connection
            return
        try:
            self._be_child()
            write(connection, str(os.getpid()).encode())
            while True:
                spec = pickle.loads(read(connection))
                self._set_time(self._cpu_s, self._wall_s)
                answer = self._answer(spec)
                self._set_time(0, 0)
                write(connection, answer)
        finally:
            os._exit(0)

    def _be_child(self) -> None:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for other in [self._control, *self._running.values()]:
            other.close()
        with suppress(ValueError, OSError):  # where the system does not bound memory
            resource.setrlimit(resource.RLIMIT_AS, (_size() + MEMORY,) * 2)

    @staticmethod
    def _set_time(cpu_s: float, wall_s: float) -> None:
        """After which this process is ended by a signal; 0: never."""
        signal.setitimer(signal.ITIMER_PROF, cpu_s)
        signal.setitimer(signal.ITIMER_REAL, wall_s)

    def _answer(self, spec: GrammarSpec) -> bytes:
        try:
            return CHECKED + checked_text(spec, self._markers, self._tokenizer).encode()
        except InvalidGrammar as error:
            return REFUSED + str(error).encode(errors="replace")
        except (MemoryError, RecursionError):
            return ENDED + bytes([signal.SIGABRT])

    def _reap(self) -> None:
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = ended
                self._report(self._running.pop(pid), os.waitstatus_to_exitcode(status))

    def _report(self, connection: socket.socket, code: int) -> None:
        with connection, suppress(OSError):  # who waited for it may be gone
            if code < 0:
                write(connection, ENDED + bytes([-code]))

    def _end(self) -> None:
        for pid in self._running:
            os.kill(pid, signal.SIGKILL)


def _size() -> int:
    """Of this process's address space, in bytes."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * resource.getpagesize()


def main() -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    GrammarProcess(socket.socket(fileno=0), *map(float, sys.argv[1:])).run()


if __name__ == "__main__":
    main()
