"""Rounds of `kill -9` under load; checks the acknowledged writes after each restart."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from aiohttp import ClientSession, ClientTimeout, TCPConnector

from tools.faults.batches import KEY, BatchReport, ReadUsage, batches, check_batches, check_files, files
from tools.faults.ledger import Ledger, broken
from tools.faults.server import Server
from tools.faults.writers import STORING, resend, without_end

WRITERS_OF_A_KIND = 2
LOAD_KEY = "sk-load"
GOING_ON_POLLS = 150  # five a second
LOAD_S = (0.05, 3.0)  # between the first request and the kill


@dataclass(slots=True)
class CrashReport:
    rounds: int = 0
    acknowledged: int = 0
    refused: dict[int, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    unfinished: int = 0  # abandoned turns in the database that were not settled
    repeated: int = 0  # requests repeated with their idempotency key
    doubled: int = 0  # of those, stored twice
    batch: BatchReport = field(default_factory=BatchReport)

    @property
    def has_failed(self) -> bool:
        return bool(self.broken or self.unfinished or self.doubled or self.batch.broken)


async def crash_rounds(
    server: Server,
    rounds: int,
    unfinished: Callable[[], Awaitable[int]],
    usage: ReadUsage,
    note: Callable[[CrashReport], None],
) -> CrashReport:
    """`unfinished` counts running turns in the database."""
    report = CrashReport()
    server.settings["PARLEY_API_KEYS"] = f"{LOAD_KEY},{KEY}"
    server.start()
    for _ in range(rounds):
        ledger = await _load_and_kill(server)
        server.start()
        report.unfinished += await left_unfinished(unfinished)
        await _check(server, ledger, report, usage)
        report.rounds += 1
        report.acknowledged += ledger.num_acknowledged
        for status, times in ledger.num_refused.items():
            report.refused[status] = report.refused.get(status, 0) + times
        note(report)
    server.kill()
    return report


async def left_unfinished(unfinished: Callable[[], Awaitable[int]]) -> int:
    """Waits for the background answers that go on after a restart. Returns how many turns are left."""
    for _ in range(GOING_ON_POLLS):
        if not await unfinished():
            return 0
        await asyncio.sleep(0.2)
    return await unfinished()


async def _load_and_kill(server: Server) -> Ledger:
    ledger = Ledger()
    async with session(server.url) as client, session(server.url, KEY) as other, asyncio.TaskGroup() as group:
        for writer in (*STORING * WRITERS_OF_A_KIND, files):
            group.create_task(without_end(writer, client, ledger))
        group.create_task(without_end(batches, other, ledger))
        await asyncio.sleep(random.uniform(*LOAD_S))
        await asyncio.to_thread(server.kill)
    return ledger


async def _check(server: Server, ledger: Ledger, report: CrashReport, usage: ReadUsage) -> None:
    async with session(server.url, KEY) as client:
        await check_batches(client, ledger, report.batch, usage)
    async with session(server.url) as client:
        await check_files(client, ledger, report.batch)
        report.broken += await broken(ledger, client)
        for repeat in ledger.repeats[-WRITERS_OF_A_KIND * 2 :]:
            report.repeated += 1
            report.doubled += await resend(repeat, client) != 1


def session(url: str, key: str = LOAD_KEY) -> ClientSession:
    """A connection per request: the server may have been restarted between two requests."""
    headers = {"Authorization": f"Bearer {key}"}
    return ClientSession(
        url, headers=headers, connector=TCPConnector(limit=0, force_close=True), timeout=ClientTimeout(total=120)
    )
