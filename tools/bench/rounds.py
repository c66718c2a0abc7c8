"""The order of the run: one target after the other, round by round, so that a noisy machine is noisy for all."""

import asyncio
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter

from aiohttp import ClientSession

from tools.bench.answer import Answer, read
from tools.bench.exchange import Exchange, exchange, session
from tools.bench.load import Load, encoded


@dataclass(frozen=True, slots=True)
class Target:
    name: str
    url: str  # up to and with /v1
    model: str
    store: bool = False  # each answer, in the server's database


@dataclass(frozen=True, slots=True)
class Plan:
    targets: Sequence[Target]
    loads: Sequence[Load]
    rounds: int  # that count; one more goes before them
    seconds: float  # that a round may take
    seed: int

    @property
    def steps(self) -> int:
        return len(self.targets) * len(self.loads) * (self.rounds + 1)


@dataclass(frozen=True, slots=True)
class Round:
    target: str
    load: Load
    number: int  # 0: the warm-up
    seconds: float
    answers: list[Answer]

    @property
    def counts(self) -> bool:
        return self.number > 0


async def run(plan: Plan) -> AsyncGenerator[Round]:
    for load in plan.loads:
        for number in range(plan.rounds + 1):
            for target in plan.targets:
                yield await play(plan, target, load, number)


async def play(plan: Plan, target: Target, load: Load, number: int) -> Round:
    bodies = encoded(load, target.model, plan.seed, number, store=target.store)
    deadline = asyncio.get_running_loop().time() + plan.seconds
    async with (
        session() as client
    ):  # a round's own: no server closes a connection on us that idled while others had their turn
        started = perf_counter()
        exchanges = await together(client, target.url + load.path, bodies, load.streams, deadline)
        seconds = perf_counter() - started
    return Round(target.name, load, number, seconds, [read(load, each) for each in exchanges])


async def together(
    client: ClientSession, url: str, bodies: Sequence[bytes], streams: int, deadline: float
) -> list[Exchange]:
    waiting = iter(bodies)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one_by_one(client, url, waiting, deadline)) for _ in range(streams)]
    return [each for task in tasks for each in task.result()]


async def one_by_one(client: ClientSession, url: str, waiting: Iterator[bytes], deadline: float) -> list[Exchange]:
    return [await exchange(client, url, body, deadline) for body in waiting]
