"""Clients that use all routes for a long time, while the server's memory, descriptors and database are sampled."""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector, TraceConfig

from tools.faults import traffic
from tools.faults.growth import Growth, growths
from tools.faults.resources import Sample, Sampler, sampled
from tools.faults.server import Server
from tools.faults.traffic import Kind
from tools.faults.traffic_client import Client, Wrong

TIMEOUT_S = 120.0  # of a request; longer is a hang
SAMPLES = 240
SETTLE_S = 5.0
MAX_LISTED = 20
LOG_TROUBLES = (" ERROR ", "Traceback")


@dataclass(slots=True)
class SoakReport:
    seconds: float = 0.0
    clients: int = 0
    requests: int = 0
    runs: dict[str, int] = field(default_factory=dict)  # of each kind of traffic
    failed: int = 0
    errors: list[str] = field(default_factory=list)  # the first of them
    log: list[str] = field(default_factory=list)  # errors in the server's log
    unfinished: int = 0  # turns that are not settled at the end
    samples: list[Sample] = field(default_factory=list)
    growths: list[Growth] = field(default_factory=list)

    @property
    def has_failed(self) -> bool:
        return bool(self.failed or self.log or self.unfinished or any(each.is_too_much for each in self.growths))

    def fail(self, kind: str, error: BaseException) -> None:
        self.failed += 1
        if len(self.errors) < MAX_LISTED:
            self.errors.append(f"{kind}: {type(error).__name__}: {str(error)[:300]}")


async def soak(
    server: Server,
    seconds: float,
    clients: int,
    unfinished: Callable[[], Awaitable[int]],
    note: Callable[[SoakReport], None],
) -> SoakReport:
    """`unfinished` counts running turns in the database."""
    report = SoakReport(clients=clients)
    server.start()
    assert server.pid
    sampler = Sampler(server.pid, server.database_url, server.folder, lambda: report.requests)
    async with _session(server.url, report) as http:
        kinds = await _kinds(Client(http))
        for kind in kinds:  # loads all models before the first sample
            await _try(kind, Client(http), report)
        began = time.monotonic()
        sampling = asyncio.create_task(sampled(sampler, seconds / SAMPLES, report.samples))
        async with asyncio.TaskGroup() as group:
            for number in range(clients):
                group.create_task(_use(Client(http), kinds, began + seconds, random.Random(number), report, note))
        sampling.cancel()
    await asyncio.sleep(SETTLE_S)
    report.samples.append(await sampler())
    report.seconds = round(time.monotonic() - began, 1)
    report.unfinished = await unfinished()
    report.growths = growths(report.samples[:-1])
    report.log = troubles(server.folder / "server.log")
    await asyncio.to_thread(server.stop)
    return report


def _session(url: str, report: SoakReport) -> ClientSession:
    """Counts the answers."""

    async def counted(*_: object) -> None:
        report.requests += 1

    tracing = TraceConfig()
    tracing.on_request_end.append(counted)
    timeout = ClientTimeout(total=TIMEOUT_S)
    return ClientSession(url, connector=TCPConnector(limit=0), timeout=timeout, trace_configs=[tracing])


async def _kinds(client: Client) -> list[Kind]:
    """Batches, too, where the server has them."""
    paths = (await client.get("/openapi.json"))["paths"]
    return [*traffic.KINDS, traffic.batch] if "/v1/batches" in paths else [*traffic.KINDS]


async def _use(
    client: Client,
    kinds: Sequence[Kind],
    end: float,
    chance: random.Random,
    report: SoakReport,
    note: Callable[[SoakReport], None],
) -> None:
    """All kinds in turn, each time in another order."""
    while time.monotonic() < end:
        for kind in chance.sample(kinds, len(kinds)):
            await _try(kind, client, report)
            note(report)
            if time.monotonic() >= end:
                return


async def _try(kind: Kind, client: Client, report: SoakReport) -> None:
    try:
        await kind(client)
    except (Wrong, ClientError, OSError, ValueError, LookupError, TimeoutError) as error:
        report.fail(kind.__name__, error)
    report.runs[kind.__name__] = report.runs.get(kind.__name__, 0) + 1


def troubles(log: Path) -> list[str]:
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    return [line[:300] for line in lines if any(mark in line for mark in LOG_TROUBLES)][:MAX_LISTED]
