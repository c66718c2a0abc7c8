"""sentence-transformers as a target: `encode` in a process, which may run in another Python."""

import asyncio
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import orjson
from pydantic import BaseModel

from tools.bench.answer import Answer
from tools.bench.load import EmbeddingLoad
from tools.bench.turn import Played, Turn, Unreachable

PROGRAM = Path(__file__).with_name("encode.py")


class OutputLine(BaseModel):
    """A line of the program's output."""

    seconds: float = 0
    texts: int = 0
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Library:
    name: str
    source: str  # a folder or a hub name
    python: str

    @property
    def model(self) -> str:
        return Path(self.source).name

    async def check(self) -> None:
        """Does nothing: errors show when it is opened."""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["Encoding"]:
        try:
            process = await asyncio.create_subprocess_exec(
                self.python, str(PROGRAM), self.source, stdin=PIPE, stdout=PIPE, stderr=DEVNULL
            )
        except OSError as problem:
            raise Unreachable(f"{self.name}: {self.python} cannot be run: {problem.strerror}") from problem
        try:
            encoding = Encoding(process)
            if error := (await encoding.read_line()).error:
                raise Unreachable(f"{self.name}: {error} (run by {self.python}, see --python)")
            yield encoding
        finally:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


class Encoding:
    """Measures the time inside of `encode`, without the transfer of the texts."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def play(self, turn: Turn) -> Played:
        assert isinstance(turn.load, EmbeddingLoad)  # the command rejects other loads
        request = {"texts": turn.load.inputs(turn.seed, turn.number), "batch": turn.load.batch}
        started = perf_counter()
        try:
            async with asyncio.timeout(turn.seconds):
                line = await self._run(request)
        except TimeoutError:
            self._process.kill()  # a running `encode` cannot be interrupted otherwise
            line = OutputLine(error="cut off at the end of its round's time")
        seconds = line.seconds or perf_counter() - started
        # one call for all texts: there is no request latency
        return Played(seconds, [Answer(seconds, None, [], line.texts, None, line.error)])

    async def _run(self, request: dict[str, object]) -> OutputLine:
        assert self._process.stdin
        self._process.stdin.write(orjson.dumps(request) + b"\n")
        with suppress(ConnectionError):  # reading the next line reports that it is gone
            await self._process.stdin.drain()
        return await self.read_line()

    async def read_line(self) -> OutputLine:
        assert self._process.stdout
        line = await self._process.stdout.readline()
        if not line:
            return OutputLine(error=f"its process ended with {await self._process.wait()}")
        return OutputLine.model_validate_json(line)
