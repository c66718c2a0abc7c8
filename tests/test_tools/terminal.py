"""`parley chat` as a process: with pipes, or in a pseudo-terminal that a test types into."""

import asyncio
import os
import pty
import re
import sys
from bisect import bisect_left
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
CLIENT = [sys.executable, "-m", "tools.cli", "chat"]
# the child takes the terminal as its own, so that Ctrl-C reaches it
IN_TERMINAL = [
    sys.executable,
    "-c",
    "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); from tools.chat.command import app; app()",
]
READY = b"\x1b[?2004h"  # bracketed paste is on: a line is read
ESCAPES = re.compile(rb"\x1b\[[0-?]*[ -/]*[@-~]")
ENTER, ALT_ENTER, CTRL_C, CTRL_D = "\r", "\x1b\r", "\x03", "\x04"


def environment(folder: Path, given: Mapping[str, str] | None = None) -> dict[str, str]:
    own = {"PYTHONPATH": str(ROOT), "XDG_STATE_HOME": str(folder / "state"), "TERM": "xterm-256color"}
    # nothing answers the question where the cursor is
    return {"PATH": os.environ["PATH"], "HOME": str(folder), "PROMPT_TOOLKIT_NO_CPR": "1", **own, **(given or {})}


@dataclass(frozen=True, slots=True)
class Run:
    code: int
    output: str
    errors: str


async def chat(folder: Path, *arguments: str, piped: str = "", **variables: str) -> Run:
    process = await asyncio.create_subprocess_exec(
        *CLIENT,
        *arguments,
        cwd=folder,
        env=environment(folder, variables),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate(piped.encode())
    assert process.returncode is not None
    return Run(process.returncode, output.decode(), errors.decode())


class Terminal:
    def __init__(self, master: int, process: asyncio.subprocess.Process) -> None:
        self._master = master
        self._process = process
        self._arrived = asyncio.Event()
        self._seen = 0  # bytes that were waited for
        self.raw = b""
        asyncio.get_running_loop().add_reader(master, self._read)

    def _read(self) -> None:
        try:
            self.raw += os.read(self._master, 65536)
        except OSError:  # the child has closed its end
            asyncio.get_running_loop().remove_reader(self._master)
        self._arrived.set()

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    async def see(self, text: str) -> None:
        """What was written since the last text that was waited for; its escape sequences do not count."""
        await self._wait(lambda new: text.encode() in ESCAPES.sub(b"", new))

    async def ready(self) -> None:
        await self._wait(lambda new: READY in new)

    async def _wait(self, is_there: Callable[[bytes], bool]) -> None:
        while not is_there(self.raw[self._seen :]):
            self._arrived.clear()
            await self._arrived.wait()
        new = self.raw[self._seen :]
        # what came together with it can still be waited for
        self._seen += bisect_left(range(len(new)), True, key=lambda end: is_there(new[:end]))

    async def ask(self, line: str) -> None:
        """Waits until the next line is read."""
        self.type(line + ENTER)
        await self.ready()

    async def leave(self) -> int:
        self.type(CTRL_D)
        return await self._process.wait()


@asynccontextmanager
async def terminal(folder: Path, *arguments: str, **variables: str) -> AsyncIterator[Terminal]:
    master, slave = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *IN_TERMINAL,
        *arguments,
        cwd=folder,
        env=environment(folder, variables),
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    opened = Terminal(master, process)
    try:
        await opened.ready()
        yield opened
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
        asyncio.get_running_loop().remove_reader(master)
        os.close(master)
