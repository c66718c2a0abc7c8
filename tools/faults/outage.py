"""Stops the database under load, starts it again, and measures what clients notice."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import ClientError, ClientSession

from tools.faults.crash import session
from tools.faults.ledger import Ledger, broken
from tools.faults.postgres import PostgresServer
from tools.faults.server import Server
from tools.faults.writers import STORING, Refused, Writer, stored_completions, unstored

CALM_S = 10.0  # under load, before the database stops
SETTLE_S = 60.0  # within which everything must recover


@dataclass(slots=True)
class OutageReport:
    seconds: float
    unstored_before_per_s: float = 0  # unstored answers
    unstored_during_per_s: float = 0
    unstored_failed: int = 0
    refused_during: dict[int, int] = field(default_factory=dict)  # storing requests, by status
    without_retry_after: int = 0
    recovered_after: float | None = None  # seconds from the database's restart to the first stored answer
    acknowledged: int = 0
    broken: list[str] = field(default_factory=list)
    unfinished: int = 0


async def outage(
    server: Server, postgres: PostgresServer, seconds: float, unfinished: Callable[[], Awaitable[int]]
) -> OutageReport:
    report = OutageReport(seconds)
    stored, chat = Ledger(), Ledger()
    server.start()
    async with session(server.url) as client:
        tasks = [asyncio.create_task(_through(each, client, stored)) for each in STORING]
        tasks += [asyncio.create_task(_through(unstored, client, chat)) for _ in range(2)]
        await asyncio.sleep(CALM_S)
        report.unstored_before_per_s = round(chat.num_acknowledged / CALM_S, 1)
        await asyncio.to_thread(postgres.stop)
        before, refused = (chat.num_acknowledged, sum(chat.num_refused.values())), dict(stored.num_refused)
        await asyncio.sleep(seconds / 2)
        report.without_retry_after = await _without_retry_after(client)
        await asyncio.sleep(seconds / 2)
        report.unstored_during_per_s = round((chat.num_acknowledged - before[0]) / seconds, 1)
        report.unstored_failed = sum(chat.num_refused.values()) - before[1]
        report.refused_during = {status: times - refused.get(status, 0) for status, times in stored.num_refused.items()}
        await asyncio.to_thread(postgres.start)
        report.recovered_after = await _until_stored(client)
        await asyncio.sleep(10)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        report.unfinished = await _until_none(unfinished)
        report.acknowledged = stored.num_acknowledged
        report.broken = await broken(stored, client)
    server.kill()
    return report


async def _through(writer: Writer, client: ClientSession, ledger: Ledger) -> None:
    """Retries after errors, as clients do."""
    while True:
        try:
            await writer(client, ledger)
        except Refused as refused:
            ledger.refused(refused.status)
            await asyncio.sleep(0.2)
        except (ClientError, OSError, ValueError):
            ledger.refused(0)
            await asyncio.sleep(0.2)


async def _until_none(unfinished: Callable[[], Awaitable[int]]) -> int:
    """Waits until no turn is running; returns how many are left."""
    left = await unfinished()
    for _ in range(int(SETTLE_S)):
        if left:
            await asyncio.sleep(1)
            left = await unfinished()
    return left


async def _without_retry_after(client: ClientSession) -> int:
    """Number of storing requests that were rejected without Retry-After."""
    missing = 0
    for _ in range(5):
        body = {"messages": [{"role": "user", "content": "Hello"}], "store": True, "max_tokens": 4}
        async with client.post("/v1/chat/completions", json=body) as response:
            missing += response.status != 503 or "Retry-After" not in response.headers
    return missing


async def _until_stored(client: ClientSession) -> float | None:
    began = time.monotonic()
    while time.monotonic() - began < SETTLE_S:
        try:
            await stored_completions(client, Ledger())
        except Refused:
            await asyncio.sleep(0.1)
        else:
            return round(time.monotonic() - began, 1)
    return None
