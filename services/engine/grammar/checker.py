"""Has grammars checked by a `grammar_process`, which is begun at the first one and again whenever it has died."""

import logging
import os
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

from services.engine.base import GrammarSpec
from services.engine.grammar.check import Vocabulary
from services.engine.grammar.check_process import ABORTED, CHECKED, ENDED, REFUSED, TIME_IS_UP, read, write
from services.engine.grammar.lark import InvalidGrammar
from services.errors import Unavailable

logger = logging.getLogger(__name__)

CPU_S = 2.0  # for one grammar: the largest schemas that are let in take one
WALL_S = 20.0  # the same, on a machine that is busy with other things
QUICK_S = 0.1  # what takes longer gives way to everybody else
SLOW_NICENESS = 10
MAX_IDLE = 2  # children that are kept
ATTEMPTS = 3  # with processes that are ended by somebody else
TOO_LARGE = "it is too large, or takes too long"


class GrammarChecker:
    """Called from several threads at once."""

    def __init__(self, vocabulary: Callable[[], Vocabulary], cpu_s: float = CPU_S, wall_s: float = WALL_S) -> None:
        self._vocabulary = vocabulary
        self._limits = (cpu_s, wall_s)
        self._lock = threading.Lock()  # over all below
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._idle: list[_Child] = []
        self._stopped = False

    def check(self, spec: GrammarSpec) -> str:
        """The text to be compiled. Raises NoGrammar, and Unavailable where processes are killed again and again."""
        for _ in range(ATTEMPTS):
            with suppress(OSError, EOFError):
                answer = self._answer(spec)
                if answer[:1] == CHECKED:
                    return answer[1:].decode()
                _raise_refusal(answer)
        raise Unavailable("Grammars cannot be checked: the process for it ends")

    def stop(self) -> None:
        """Whoever waits for an answer gets none."""
        with self._lock:
            self._stopped = True
            self._end()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    def _answer(self, spec: GrammarSpec) -> bytes:
        child = self._child()
        try:
            answer = child.ask(spec)
        except BaseException:
            child.close()
            raise
        self._put_back(child)
        return answer

    def _child(self) -> "_Child":
        with self._lock:
            if self._stopped:
                raise Unavailable("The model is being unloaded")
            if self._process is not None and self._process.poll() is not None:
                self._bury()
            if self._idle:
                return self._idle.pop()
            return self._new_child()

    def _new_child(self) -> "_Child":
        ours, theirs = socket.socketpair()
        ours.settimeout(2 * self._limits[1])
        try:
            with theirs:
                self._send(theirs)
        except BaseException:
            ours.close()
            raise
        return _Child(ours)

    def _put_back(self, child: "_Child") -> None:
        with self._lock:
            if self._stopped or child.is_slow or len(self._idle) >= MAX_IDLE:
                child.close()
            else:
                self._idle.append(child)

    def _send(self, connection: socket.socket) -> None:
        try:
            if self._control is None:
                self._begin()
            assert self._control is not None
            socket.send_fds(self._control, [b"x"], [connection.fileno()])
        except OSError:
            self._bury()
            raise

    def _begin(self) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "services.engine.grammar.check_process", *map(str, self._limits)]
            # in a group of its own: a terminal's Ctrl-C is for the server. Its errors quote what callers send
            self._process = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0
            )
        write(self._control, pickle.dumps(self._vocabulary()))

    def _bury(self) -> None:
        logger.warning("the process that checks grammars has died: there will be a new one")
        self._end()

    def _end(self) -> None:
        while self._idle:
            self._idle.pop().close()
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            _wait(self._process)
            self._process = None


class _Child:
    """The other end of a connection."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._pid: int | None = None
        self.is_slow = False

    def ask(self, spec: GrammarSpec) -> bytes:
        """Raises OSError or EOFError where nobody answers."""
        if self._pid is None:
            self._pid = int(read(self._connection))
        write(self._connection, pickle.dumps(spec))
        self._watch(self._pid)
        return read(self._connection)

    def close(self) -> None:
        self._connection.close()

    def _watch(self, pid: int) -> None:
        timeout = self._connection.gettimeout()
        self._connection.settimeout(QUICK_S)
        try:
            self._connection.recv(1, socket.MSG_PEEK)
        except TimeoutError:
            self.is_slow = True
            with suppress(OSError):  # it may just have been ended
                os.setpriority(os.PRIO_PROCESS, pid, SLOW_NICENESS)
        self._connection.settimeout(timeout)


def _raise_refusal(answer: bytes) -> None:
    """Nothing where a child was ended that its grammar did not end."""
    if answer[:1] == REFUSED:
        raise InvalidGrammar(answer[1:].decode())
    if answer[:1] == ENDED and answer[1] in TIME_IS_UP + ABORTED:
        raise InvalidGrammar(TOO_LARGE)


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        process.wait(1)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
