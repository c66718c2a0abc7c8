"""Files and batches while the server is killed: after it each file has its bytes, each line of a batch one answer, and
usage what was answered."""

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import orjson
from aiohttp import ClientSession, FormData

from database.usage_repository import UsageCounts
from tools.faults.ledger import Ledger
from tools.faults.writers import Refused

KEY = "sk-batches"  # whose usage is that of batches alone
OWNER = "key_" + hashlib.sha256(KEY.encode()).hexdigest()[:24]
LINES = 30
TOKENS = 8
POLL_S = 0.2
TIMEOUT_S = 120.0

ReadUsage = Callable[[str], Awaitable[UsageCounts]]  # of an owner


@dataclass(slots=True)
class BatchReport:
    """Of all rounds."""

    files: int = 0
    batches: int = 0
    lines: int = 0
    usage: dict[str, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)


async def files(client: ClientSession, ledger: Ledger) -> None:
    data = random.randbytes(random.choice((10, 100_000, 3_000_000)))
    ledger.files[(await _upload(client, data, "user_data"))["id"]] = data
    ledger.num_acknowledged += 1


async def batches(client: ClientSession, ledger: Ledger) -> None:
    """One after the other."""
    data = b"\n".join(_line(number) for number in range(LINES))
    file = (await _upload(client, data, "batch"))["id"]
    body = {"input_file_id": file, "endpoint": "/v1/chat/completions", "completion_window": "24h"}
    made = await _json(client, "POST", "/v1/batches", json=body)
    ledger.batches.append(made["id"])
    ledger.num_acknowledged += 1
    await _ended(client, made["id"])


async def check_files(client: ClientSession, ledger: Ledger, report: BatchReport) -> None:
    for file_id, sent in ledger.files.items():
        async with client.get(f"/v1/files/{file_id}/content") as response:
            if response.status != 200 or await response.read() != sent:
                report.broken.append(f"{file_id}: not the bytes that were acknowledged ({response.status})")
    report.files += len(ledger.files)


async def check_batches(client: ClientSession, ledger: Ledger, report: BatchReport, usage: ReadUsage) -> None:
    """All that are there: a batch may have been made without having been acknowledged."""
    there = await _ids(client)
    report.broken += [f"{each}: lost" for each in ledger.batches if each not in there]
    answers = [answer for each in there for answer in await _answers(client, each, report)]
    answered = {name: sum(each["usage"][name] for each in answers) for name in ("prompt_tokens", "completion_tokens")}
    counts = await usage(OWNER)
    counted = {name: getattr(counts, name) for name in answered} | {"requests": counts.requests}
    if counted != (answered := answered | {"requests": len(answers)}):
        report.broken.append(f"usage: {answered} was answered, {counted} is counted")
    report.batches, report.lines, report.usage = len(there), len(answers), counted


async def _ids(client: ClientSession) -> list[str]:
    ids: list[str] = []
    while True:
        after = f"&after={ids[-1]}" if ids else ""
        page = await _json(client, "GET", f"/v1/batches?limit=100{after}")
        ids += [each["id"] for each in page["data"]]
        if not page["has_more"]:
            return ids


async def _answers(client: ClientSession, batch_id: str, report: BatchReport) -> list[dict[str, Any]]:
    batch = await _ended(client, batch_id)
    if batch["status"] != "completed" or batch["error_file_id"]:
        report.broken.append(f"{batch_id}: {batch['status']}, {batch['request_counts']}")
        return []
    async with client.get(f"/v1/files/{batch['output_file_id']}/content") as response:
        lines = [orjson.loads(line) for line in (await response.read()).splitlines()]
    if sorted(each["custom_id"] for each in lines) != sorted(map(str, range(LINES))):
        report.broken.append(f"{batch_id}: {len(lines)} lines, not each of {LINES} once")
    return [each["response"]["body"] for each in lines]


async def _ended(client: ClientSession, batch_id: str) -> dict[str, Any]:
    async with asyncio.timeout(TIMEOUT_S):
        while True:
            batch = await _json(client, "GET", f"/v1/batches/{batch_id}")
            if batch["status"] in ("completed", "failed"):
                return batch
            await asyncio.sleep(POLL_S)


async def _upload(client: ClientSession, data: bytes, purpose: str) -> dict[str, Any]:
    form = FormData({"purpose": purpose})
    form.add_field("file", data, filename="file")
    return await _json(client, "POST", "/v1/files", data=form)


async def _json(client: ClientSession, method: str, path: str, **sent: Any) -> dict[str, Any]:
    async with client.request(method, path, **sent) as response:
        if response.status != 200:
            raise Refused(response.status)
        found: dict[str, Any] = await response.json()
        return found


def _line(number: int) -> bytes:
    body = {"messages": [{"role": "user", "content": f"{number} {uuid4().hex}"}], "max_tokens": TOKENS}
    return orjson.dumps({"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": body})
