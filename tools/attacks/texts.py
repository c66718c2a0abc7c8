"""Long texts, four at a time to each route that tokenises; the process must return the memory."""

import asyncio
import random
import time
from collections.abc import Coroutine
from typing import Any

import orjson

from tools.attacks.target import Finding, Target

SIZE = 15_000_000
AT_ONCE = 4
PEAK_MIB = 800  # above the memory before
LEFT_MIB = 300
SETTLE_S = 15.0
EACH_S = 0.05


async def texts(target: Target, finding: Finding) -> None:
    words = _words(SIZE // target.every)
    before = target.resident_mib()
    peak, left = await _resident_during(target, _send_all(target, finding, words))
    if before is None or peak is None or left is None:
        return
    finding.notes |= {"resident MiB before": before, "at most": peak, "after": left}
    finding.check(peak - before < PEAK_MIB, "memory while texts are read", f"{peak - before} MiB")
    finding.check(left - before < LEFT_MIB, "memory after texts were read", f"{left - before} MiB")


async def _send_all(target: Target, finding: Finding, words: str) -> None:
    bodies = {
        "/v1/chat/completions": {"messages": [{"role": "user", "content": words}]},
        "/v1/completions": {"prompt": words},
        "/v1/responses": {"input": words},
        "/tokenize": {"prompt": words},
        "/v1/messages": {"model": "default", "max_tokens": 1, "messages": [{"role": "user", "content": words}]},
    }
    for path, body in bodies.items():
        data = orjson.dumps(body)
        for status in await asyncio.gather(*(_post(target, path, data) for _ in range(AT_ONCE))):
            finding.check(status in (200, 400, 413, 429), f"{len(data)} bytes to {path}", status)


async def _post(target: Target, path: str, data: bytes) -> int:
    headers = {"Content-Type": "application/json"}
    key = target.alpha if target.keys else None
    async with target.client(key) as client, client.post(path, data=data, headers=headers) as answer:
        await answer.read()
        return answer.status


async def _resident_during(target: Target, work: Coroutine[Any, Any, None]) -> tuple[int | None, int | None]:
    """The peak during the attack, and the minimum some time after."""
    task, seen = asyncio.create_task(work), [target.resident_mib()]
    while not task.done():
        await asyncio.wait({task}, timeout=EACH_S)
        seen.append(target.resident_mib())
    await task
    after, began = [target.resident_mib()], time.monotonic()
    while seen[0] is not None and time.monotonic() - began < SETTLE_S:
        await asyncio.sleep(0.5)
        after.append(target.resident_mib())
        if (after[-1] or 0) - seen[0] < LEFT_MIB // 2:
            break
    return _most(seen), after[-1]


def _most(seen: list[int | None]) -> int | None:
    return max((each for each in seen if each is not None), default=None)


def _words(size: int) -> str:
    chance = random.Random(1)
    known = ["".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=chance.randint(2, 9))) for _ in range(20_000)]
    return " ".join(chance.choices(known, k=size // 6))[:size]
