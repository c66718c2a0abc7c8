"""CPU cost of the HTTP side per chunk, with an engine that only makes tokens: `python -m tests.http_cost`."""

import asyncio
import os
import sys
import tempfile
import time
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import uvicorn

from services.engine.base import EngineStats, Job, Piece
from tests.databases import free_port

STEP_S = 0.004
ROUNDS = 5
MORE = 256  # additional tokens of the longer answers


class NoTokenizer:
    chat_template = None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [1] * 10


class TokenEngine:
    """Delivers a token for each stream at every step, like a real engine."""

    device, dtype, max_length, images = "none", "none", 8192, None

    def __init__(self) -> None:
        self.tokenizer = NoTokenizer()
        self._left: dict[asyncio.Queue[Piece], int] = {}
        self._steps: asyncio.Task[None] | None = None
        self._asked = asyncio.Event()

    def start(self) -> None:
        self._steps = asyncio.create_task(self._run())

    async def stop(self) -> None:
        if self._steps:
            self._steps.cancel()

    def stats(self) -> EngineStats:
        return EngineStats(running=len(self._left))

    async def submit(self, job: Job) -> AsyncGenerator[Piece, None]:
        queue: asyncio.Queue[Piece] = asyncio.Queue()
        self._left[queue] = job.sampling.max_tokens or 64
        self._asked.set()
        return self._pieces(queue)

    async def _pieces(self, queue: asyncio.Queue[Piece]) -> AsyncGenerator[Piece, None]:
        finished = False
        while not finished:
            piece = await queue.get()
            finished = piece.finish is not None
            yield piece

    async def _run(self) -> None:
        while True:
            await self._asked.wait()
            await asyncio.sleep(STEP_S)
            self._left = {queue: left - 1 for queue, left in self._left.items() if left}
            for queue, left in self._left.items():
                queue.put_nowait(Piece(" token", (5,), finish=None if left else "length"))
            if not self._left:
                self._asked.clear()


async def measure(streams: int) -> None:
    async with serving() as url:
        short = [await cost(url, streams, 1) for _ in range(ROUNDS)]
        long = [await cost(url, streams, 1 + MORE) for _ in range(ROUNDS)]
    request, chunk = min(short), (min(long) - min(short)) / MORE
    print(f"CPU at {streams} streams: {request * 1e3:.2f} ms a request, {chunk * 1e6:.1f} us a chunk")  # noqa: T201


async def cost(url: str, streams: int, tokens: int) -> float:
    """CPU time of a request, in a round of `parley bench` and its warm-up."""
    requests, started = 2 * streams, time.process_time()
    options = ["--streams", str(streams), "--requests", str(requests), "--tokens", str(tokens), "--rounds", "1"]
    command = [sys.executable, "-m", "tools.cli", "bench", "--target", f"parley={url}/v1", *options]
    with tempfile.TemporaryDirectory() as folder:
        bench = await asyncio.create_subprocess_exec(*command, "--output", f"{folder}/x", stdout=DEVNULL)
        assert await bench.wait() == 0
    return (time.process_time() - started) / (2 * requests)


@asynccontextmanager
async def serving() -> AsyncGenerator[str]:
    from app.common.settings import Settings  # reads the environment
    from app.main import create_app

    app = create_app(Settings(_env_file=None), build=lambda kind, **options: TokenEngine(), environment=os.environ)
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, http="h11", log_config=None, access_log=False))
    serving = asyncio.create_task(server.serve())
    while not server.started:  # noqa: ASYNC110  it tells nobody
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    await serving


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as home:
        os.environ["PARLEY_DATABASE__URL"] = f"sqlite:///{Path(home)}/parley.db"
        os.environ["PARLEY_LOG__LEVEL"] = "ERROR"
        asyncio.run(measure(int(sys.argv[1]) if sys.argv[1:] else 32))
