"""Many streams at once: each is answered to its end or refused, and the server's probe is answered meanwhile."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from aiohttp import ClientError, ClientSession, ClientTimeout, TCPConnector

from tools.attacks.beat import Beats
from tools.attacks.heartbeat import beating
from tools.faults.resources import Sample, Sampler, sampled
from tools.faults.server import Server
from tools.faults.soak import MAX_LISTED, troubles
from tools.faults.traffic import chat

SAMPLE_S = 0.25
SETTLE_S = 3.0


@dataclass(slots=True)
class StreamsReport:
    count: int
    seconds: float = 0.0
    answered: int = 0
    refused: int = 0  # 429 with Retry-After
    broken: list[str] = field(default_factory=list)  # neither; the first of them
    num_broken: int = 0
    hung: int = 0  # without an end in time
    chunks: int = 0
    first_s: dict[str, float | None] = field(default_factory=dict)  # to the first chunk
    probe: Beats = field(default_factory=Beats)
    most_open: int = 0  # streams that were open at once
    rss_mib: dict[str, float] = field(default_factory=dict)
    descriptors: dict[str, float] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)

    def has_failed(self, probe_ms: float) -> bool:
        lost = self.count - self.answered - self.refused
        return bool(lost or self.log or self.probe.missed or self.probe.worst_ms > probe_ms)


@dataclass(slots=True)
class OpenStreams:
    now: int = 0
    most: int = 0
    firsts: list[float] = field(default_factory=list)

    def add(self, change: int) -> None:
        self.now += change
        self.most = max(self.most, self.now)


async def streams(server: Server, count: int, tokens: int, timeout_s: float) -> StreamsReport:
    report, opened, samples = StreamsReport(count), OpenStreams(), list[Sample]()
    server.start()
    assert server.pid
    sampler = Sampler(server.pid, server.database_url, server.folder, lambda: report.answered)
    await _warm_up(server)
    samples.append(await sampler())
    sampling = asyncio.create_task(sampled(sampler, SAMPLE_S, samples))
    began = time.monotonic()
    async with beating("127.0.0.1", server.port) as beats, _session(server.url, timeout_s) as client:
        await asyncio.gather(*(run_stream(client, tokens, report, opened) for _ in range(count)))
    report.seconds = round(time.monotonic() - began, 1)
    sampling.cancel()
    await asyncio.sleep(SETTLE_S)
    samples.append(await sampler())
    report.probe, report.most_open, report.first_s = beats[0], opened.most, _percentiles(opened.firsts)
    report.rss_mib = _extremes([sample.rss_mib for sample in samples])
    report.descriptors = _extremes([sample.descriptors for sample in samples])
    report.log = troubles(server.folder / "server.log")
    await asyncio.to_thread(server.stop)
    return report


def _session(url: str, timeout_s: float) -> ClientSession:
    return ClientSession(url, connector=TCPConnector(limit=0), timeout=ClientTimeout(total=timeout_s))


async def _warm_up(server: Server) -> None:
    """What a first request costs is not what is measured."""
    async with _session(server.url, 60) as client:
        for stream in (True, False):
            async with client.post("/v1/chat/completions", json=chat(stream=stream)) as response:
                await response.read()


async def run_stream(client: ClientSession, tokens: int, report: StreamsReport, opened: OpenStreams) -> None:
    opened.add(1)
    try:
        await _read(client, tokens, report, opened)
    except TimeoutError:
        report.hung += 1
    except (ClientError, OSError) as error:
        _broke(report, f"{type(error).__name__}: {error}")
    finally:
        opened.add(-1)


async def _read(client: ClientSession, tokens: int, report: StreamsReport, opened: OpenStreams) -> None:
    began = time.monotonic()
    async with client.post("/v1/chat/completions", json=chat(stream=True, max_tokens=tokens)) as response:
        if response.status == 429 and "Retry-After" in response.headers:
            report.refused += 1
            return
        last = b""
        async for line in response.content:
            if line.startswith(b"data: "):
                if not last:
                    opened.firsts.append(time.monotonic() - began)
                last = line.strip()
                report.chunks += 1
    if response.status == 200 and last == b"data: [DONE]":
        report.answered += 1
    else:
        _broke(report, f"{response.status}, ends with {last[-100:]!r}")


def _broke(report: StreamsReport, what: str) -> None:
    report.num_broken += 1
    if len(report.broken) < MAX_LISTED:
        report.broken.append(what[:300])


def _percentiles(values: Sequence[float]) -> dict[str, float | None]:
    ordered = sorted(values)
    places = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {
        name: round(ordered[min(int(share * len(ordered)), len(ordered) - 1)], 2) if ordered else None
        for name, share in places.items()
    }


def _extremes(values: Sequence[float]) -> dict[str, float]:
    return {"before": values[0], "most": max(values), "after": values[-1]}
