"""Rounds of `kill -9` of one of several replicas under load; the others go on, and so do their clients."""

import asyncio
import os
import random
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
from aiohttp import ClientError, ClientSession

from tools.faults.crash import LOAD_S, WRITERS_OF_A_KIND, left_unfinished, session
from tools.faults.ledger import Ledger, broken
from tools.faults.server import Server
from tools.faults.writers import STORING, Refused, Writer, resend

AFTER_S = 2.0  # load after the kill
TOKENS = 120
PROBE_S = 0.05
ENGINE = {
    "PARLEY_MODEL__ENGINE": "tools.faults.token_engine:TokenEngine",
    "PARLEY_MODEL__ENGINE_OPTIONS": '{"step_s": 0.01}',
    "PARLEY_LOG__LEVEL": "WARNING",
}


@dataclass(slots=True)
class ReplicaReport:
    replicas: int
    rounds: int = 0
    acknowledged: int = 0
    broken: list[str] = field(default_factory=list)
    unfinished: int = 0  # turns that nobody finished
    repeated: int = 0  # requests repeated with their idempotency key
    doubled: int = 0  # of those, stored twice
    streams: int = 0  # background streams that were read to their end
    resumed: int = 0  # connections that broke meanwhile
    gaps: list[str] = field(default_factory=list)  # streams with a gap, a repetition or another end than what is stored
    until_answered_s: list[float] = field(default_factory=list)  # the slowest new request after each kill

    @property
    def slowest_s(self) -> float:
        return max(self.until_answered_s, default=0.0)


async def replica_rounds(
    server: Server,
    replicas: int,
    rounds: int,
    unfinished: Callable[[], Awaitable[int]],
    note: Callable[[ReplicaReport], None],
) -> ReplicaReport:
    """`server` is started with so many replicas."""
    report = ReplicaReport(replicas)
    server.start()
    for _ in range(rounds):
        ledger = Ledger()
        await _round(server, ledger, report)
        report.unfinished += await left_unfinished(unfinished)
        async with session(server.url) as client:
            report.broken += await broken(ledger, client)
            for repeat in ledger.repeats[-WRITERS_OF_A_KIND * 2 :]:
                report.repeated += 1
                report.doubled += await resend(repeat, client) != 1
        report.rounds += 1
        report.acknowledged += ledger.num_acknowledged
        note(report)
    server.stop()
    return report


async def _round(server: Server, ledger: Ledger, report: ReplicaReport) -> None:
    async with session(server.url) as client:
        await _all_there(server, report.replicas)
        writing = [asyncio.create_task(_write(writer, client, ledger)) for writer in STORING * WRITERS_OF_A_KIND]
        following = [asyncio.create_task(_follow(client, report)) for _ in range(4)]
        await asyncio.sleep(random.uniform(*LOAD_S))
        os.kill(random.choice(pids(server)), signal.SIGKILL)
        report.until_answered_s.append(await _slowest(client))
        for task in writing:
            task.cancel()
        await asyncio.gather(*writing, return_exceptions=True)
        async with asyncio.timeout(120):
            await asyncio.gather(*following)


def pids(server: Server) -> list[int]:
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    return [pid for pid in map(int, children) if b"app.replicas.replica" in Path(f"/proc/{pid}/cmdline").read_bytes()]


async def _all_there(server: Server, replicas: int) -> None:
    async with session(server.url) as client:
        for _ in range(1200):
            if await _num_replicas(client) == replicas:
                return
            await asyncio.sleep(0.1)
    raise TimeoutError("a replica is not started again")


async def _num_replicas(client: ClientSession) -> int:
    async with client.get("/metrics") as response:
        lines = (await response.text()).splitlines()
    return len({line.partition('replica="')[2].partition('"')[0] for line in lines if 'replica="' in line})


async def _write(writer: Writer, client: ClientSession, ledger: Ledger) -> None:
    """Goes on after errors: the other replicas are there."""
    while True:
        try:
            await writer(client, ledger)
        except Refused as refused:
            ledger.refused(refused.status)
        except (ClientError, OSError, ValueError):
            await asyncio.sleep(0.05)


async def _slowest(client: ClientSession) -> float:
    """Of the new requests of the next seconds, each sent again until it is answered."""
    end, answers = time.monotonic() + AFTER_S, []
    while time.monotonic() < end:
        answers.append(asyncio.create_task(_answered(client)))
        await asyncio.sleep(PROBE_S)
    return round(max(await asyncio.gather(*answers)), 2)


async def _answered(client: ClientSession) -> float:
    began = time.monotonic()
    body = {"messages": [{"role": "user", "content": uuid4().hex}], "max_tokens": 1}
    while True:
        with suppress(ClientError, OSError):
            async with client.post("/v1/chat/completions", json=body) as response:
                if response.status == 200:
                    await response.read()
                    return time.monotonic() - began
        await asyncio.sleep(0.05)


async def _follow(client: ClientSession, report: ReplicaReport) -> None:
    """A background stream, read on at the exact event whenever the connection breaks."""
    id = await _begun(client)
    seen: list[dict[str, Any]] = []
    while not (seen and seen[-1]["type"].removeprefix("response.") in ("completed", "incomplete", "failed")):
        try:
            await _read(client, id, seen)
        except (ClientError, OSError):
            report.resumed += 1
            await asyncio.sleep(0.05)
    report.streams += 1
    numbers = [event["sequence_number"] for event in seen]
    text = "".join(event["delta"] for event in seen if event["type"] == "response.output_text.delta")
    stored = await _stored(client, id)
    if numbers != [*range(len(numbers))]:
        report.gaps.append(f"{id}: numbers {numbers}")
    elif stored["output"][0]["content"][0]["text"] != text or len(text) != TOKENS:
        report.gaps.append(f"{id}: {len(text)} characters, {stored['status']}, not what is stored")


async def _begun(client: ClientSession) -> str:
    while True:
        body = {"input": f"Follow {uuid4().hex}", "background": True, "max_output_tokens": TOKENS}
        with suppress(ClientError, OSError):
            async with client.post("/v1/responses", json=body) as response:
                response.raise_for_status()
                id: str = (await response.json())["id"]
                return id
        await asyncio.sleep(0.05)


async def _stored(client: ClientSession, id: str) -> dict[str, Any]:
    while True:
        with suppress(ClientError, OSError):
            async with client.get(f"/v1/responses/{id}") as response:
                response.raise_for_status()
                found: dict[str, Any] = await response.json()
                return found
        await asyncio.sleep(0.05)


async def _read(client: ClientSession, id: str, seen: list[dict[str, Any]]) -> None:
    after = {"starting_after": str(seen[-1]["sequence_number"])} if seen else {}
    async with client.get(f"/v1/responses/{id}", params={"stream": "true", **after}) as response:
        response.raise_for_status()
        async for line in response.content:
            if line.startswith(b"data: {"):
                event = orjson.loads(line.removeprefix(b"data: "))
                if event["type"] == "error":
                    raise ConnectionError(event["message"])
                seen.append(event)
