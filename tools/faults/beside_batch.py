"""What a batch costs the requests beside it: their time to the first token, in turns with and without a batch."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any
from uuid import uuid4

import orjson
from aiohttp import ClientSession, ClientTimeout, FormData

from tools.faults.server import Server

LINES = 5_000  # more than are answered in a round
BATCH_TOKENS = 64
ANSWER_TOKENS = 8
POLL_S = 0.05
SETTLE_S = 0.5  # between two requests, as a reader leaves
TIMEOUT_S = 300.0
WORDS = ("river", "stone", "under", "light", "north", "seven", "grass", "table")


@dataclass(slots=True)
class BesideBatchReport:
    """Milliseconds; `ratio`: of the medians, with a batch to without."""

    words: int
    without: list[float] = field(default_factory=list)
    beside: list[float] = field(default_factory=list)
    lines: int = 0  # of batches that were answered meanwhile

    @property
    def ratio(self) -> float:
        return round(median(self.beside) / median(self.without), 3)

    def has_failed(self, limit: float) -> bool:
        return self.ratio > limit or not self.lines


async def beside_batch(
    server: Server, rounds: int, requests: int, words: int, note: Callable[[BesideBatchReport], None]
) -> BesideBatchReport:
    report = BesideBatchReport(words)
    await asyncio.to_thread(server.start)
    try:
        async with ClientSession(server.url, timeout=ClientTimeout(total=TIMEOUT_S)) as client:
            await _first_tokens(client, 2, words)  # what a first request costs is not what is measured
            for _ in range(rounds):
                report.without += await _first_tokens(client, requests, words)
                async with _batch(client, report):
                    report.beside += await _first_tokens(client, requests, words)
                note(report)
    finally:
        await asyncio.to_thread(server.stop)
    return report


async def _first_tokens(client: ClientSession, count: int, words: int) -> list[float]:
    found = []
    for _ in range(count):
        found.append(await _first_token(client, words))
        await asyncio.sleep(SETTLE_S)
    return found


async def _first_token(client: ClientSession, words: int) -> float:
    """Of a prompt that nobody has asked before."""
    body = {"messages": _messages(words), "max_tokens": ANSWER_TOKENS, "stream": True}
    began = time.perf_counter()
    async with client.post("/v1/chat/completions", json=body) as response:
        response.raise_for_status()
        async for line in response.content:
            if b'"content":"' in line and b'"content":""' not in line:
                taken = time.perf_counter() - began
                await response.read()
                return round(1000 * taken, 2)
    raise RuntimeError("A stream without a token")


@asynccontextmanager
async def _batch(client: ClientSession, report: BesideBatchReport) -> AsyncIterator[None]:
    """Runs while it is open; what is left of it is cancelled."""
    made = await _call(client, "POST", "/v1/batches", json=await _request(client))
    path = f"/v1/batches/{made['id']}"
    await _until(client, path, lambda batch: batch["request_counts"]["completed"] > 0)
    yield
    await _call(client, "POST", f"{path}/cancel")
    ended = await _until(client, path, lambda batch: batch["status"] == "cancelled")
    report.lines += ended["request_counts"]["completed"]


async def _request(client: ClientSession) -> dict[str, Any]:
    form = FormData({"purpose": "batch"})
    form.add_field("file", b"\n".join(map(_line, range(LINES))), filename="batch.jsonl")
    file = await _call(client, "POST", "/v1/files", data=form)
    return {"input_file_id": file["id"], "endpoint": "/v1/chat/completions", "completion_window": "24h"}


def _line(number: int) -> bytes:
    body = {"messages": _messages(16), "max_tokens": BATCH_TOKENS, "min_tokens": BATCH_TOKENS}
    return orjson.dumps({"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body})


def _messages(words: int) -> list[dict[str, str]]:
    content = " ".join([uuid4().hex, *(WORDS[index % len(WORDS)] for index in range(words))])
    return [{"role": "user", "content": content}]


async def _until(client: ClientSession, path: str, done: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            batch = await _call(client, "GET", path)
            if done(batch):
                return batch
            await asyncio.sleep(POLL_S)


async def _call(client: ClientSession, method: str, path: str, **sent: Any) -> dict[str, Any]:
    async with client.request(method, path, **sent) as response:
        response.raise_for_status()
        found: dict[str, Any] = await response.json()
        return found
