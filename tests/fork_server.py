"""A program that starts the service by forking: torch, transformers and the app are imported once, not once a service.

`tests/forked.py` holds the other end of its standard input, a socket with one message for each start. A child has the
directory, environment, arguments and output of its own that `python -m` would give it; it ends with its own exit status
or signal, which is reported over the connection that came with its start. When the input ends, all children are killed.
"""

import ast
import gc
import os
import pickle
import resource
import runpy
import select
import signal
import socket
import struct
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

MESSAGE_BYTES = 1 << 18
NUMBER = struct.Struct("=i")  # of a process, then its exit status
MODULES = (
    "uvicorn.main",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.h11_impl",
    "typer",
    "aiosqlite",
    "asyncpg",
    "sqlalchemy.dialects.postgresql.asyncpg",
    "sqlalchemy.dialects.sqlite.aiosqlite",
    "services.engine.local",
    "services.engine.embedding.embedder",
    "services.engine.embedding.reranker",
    "services.engine.remote.engine",
    "transformers.models.auto.modeling_auto",
    "transformers.models.auto.tokenization_auto",
    "transformers.models.bert.modeling_bert",
    "transformers.models.llama.modeling_llama",
)


@dataclass(frozen=True, slots=True)
class Start:
    command: list[str]  # a module and its arguments
    folder: str
    environment: dict[str, str]
    files: int | None = None  # how many may be open


@dataclass(slots=True)
class ForkServer:
    control: socket.socket
    running: dict[int, socket.socket] = field(default_factory=dict)

    def serve(self) -> Start | None:
        """Returns in each child, with what it is to run, and at the end without."""
        woken, wakeup = socket.socketpair()
        wakeup.setblocking(False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
        while True:
            ready, _, _ = select.select([self.control, woken], [], [])
            if woken in ready:
                woken.recv(4096)
                self._reap()
            if self.control in ready:
                message, descriptors, _, _ = socket.recv_fds(self.control, MESSAGE_BYTES, 2)
                if not message:
                    return self._end()
                report, output = socket.socket(fileno=descriptors[0]), descriptors[1]
                if (number := os.fork()) == 0:
                    signal.set_wakeup_fd(-1)
                    self._leave([woken, wakeup, report], output)
                    start: Start = pickle.loads(message)
                    return start
                os.close(output)
                self.running[number] = report
                report.send(NUMBER.pack(number))

    def _leave(self, connections: list[socket.socket], output: int) -> None:
        """In a child: nothing of the server's remains open."""
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, self.control.detach())
        os.close(nothing)
        for connection in [*connections, *self.running.values()]:
            connection.close()

    def _reap(self) -> None:
        while self.running:
            number, status = os.waitpid(-1, os.WNOHANG)
            if number == 0:
                return
            with self.running.pop(number) as report, suppress(OSError):  # nobody may be interested
                report.send(NUMBER.pack(os.waitstatus_to_exitcode(status)))

    def _end(self) -> None:
        signal.set_wakeup_fd(-1)
        for number in self.running:
            os.kill(number, signal.SIGKILL)


def import_imports_of(module: str) -> None:
    """Imports what a module imports, but not itself: importing `app.main` would build an app."""
    spec = find_spec(module)
    assert spec
    assert spec.origin
    tree = ast.parse(Path(spec.origin).read_text("utf-8"))
    imports: list[ast.stmt] = [each for each in tree.body if isinstance(each, ast.Import | ast.ImportFrom)]
    exec(compile(ast.Module(imports, []), spec.origin, "exec"), {"__name__": module})


def run(start: Start) -> None:
    """As `python -m` would."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    os.environ.clear()
    os.environ.update(start.environment)
    os.chdir(start.folder)
    if start.files is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (start.files, start.files))
    module, *arguments = start.command
    sys.argv = [module, *arguments]
    sys.path[0] = start.folder
    gc.enable()
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def main() -> None:
    gc.disable()  # what is imported stays
    # pytest gets it too, and closes the control connection
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    for module in MODULES:
        import_module(module)
    import_imports_of("app.main")
    assert len(os.listdir("/proc/self/task")) == 1, "a fork would lose other threads"
    gc.freeze()  # children share this memory
    if start := ForkServer(socket.socket(fileno=0)).serve():
        run(start)


if __name__ == "__main__":
    main()
