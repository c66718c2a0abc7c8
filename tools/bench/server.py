"""A server as a target: concurrent requests, each on its own connection."""

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter

from aiohttp import ClientError, ClientSession

from tools.bench.answer import read
from tools.bench.exchange import Exchange, exchange, session
from tools.bench.load import encoded
from tools.bench.turn import Played, Turn, Unreachable


@dataclass(frozen=True, slots=True)
class Server:
    name: str
    url: str  # including /v1
    model: str
    store: bool = False  # stores answers in the server's database
    _key: str | None = None  # underscore: orjson does not serialise it

    async def check(self) -> None:
        async with session(self._key) as client:
            try:
                async with client.get(f"{self.url}/models", raise_for_status=True):
                    pass
            except (ClientError, TimeoutError) as problem:
                raise Unreachable(f"{self.name} does not answer at {self.url}/models: {problem}") from problem

    @asynccontextmanager
    async def opened(self) -> AsyncIterator["Server"]:
        yield self

    async def play(self, turn: Turn) -> Played:
        bodies = encoded(turn.load, self.model, turn.seed, turn.number, store=self.store)
        deadline = asyncio.get_running_loop().time() + turn.seconds
        # for this round only: servers close connections that idled while other targets had their turn
        async with session(self._key) as client:
            started = perf_counter()
            exchanges = await together(client, self.url + turn.load.path, bodies, turn.load.streams, deadline)
            seconds = perf_counter() - started
        return Played(seconds, [read(turn.load, each) for each in exchanges])


async def together(
    client: ClientSession, url: str, bodies: Sequence[bytes], streams: int, deadline: float
) -> list[Exchange]:
    waiting = iter(bodies)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one_by_one(client, url, waiting, deadline)) for _ in range(streams)]
    return [each for task in tasks for each in task.result()]


async def one_by_one(client: ClientSession, url: str, waiting: Iterator[bytes], deadline: float) -> list[Exchange]:
    return [await exchange(client, url, body, deadline) for body in waiting]
