"""Alpha floods the server; beta requests one word."""

import asyncio
import time
from contextlib import suppress

from aiohttp import ClientError, ClientSession

from tools.attacks.target import Finding, Target

STREAMS = 40
FLOOD = 150  # requests with many choices
CHOICES = 16
LONG = 400  # tokens
TIMES = 5
STARVED_S = 60.0


async def fairness(target: Target, finding: Finding) -> None:
    async with target.client(target.alpha) as alpha, target.client(target.beta) as beta:
        flood = [asyncio.create_task(_flood(alpha, 1)) for _ in range(STREAMS // target.every or 1)]
        flood += [asyncio.create_task(_flood(alpha, CHOICES)) for _ in range(FLOOD // target.every)]
        await asyncio.sleep(0.5)
        times = []
        try:
            for _ in range(TIMES):
                times.append(await _first_token(beta, finding))
        finally:
            for each in flood:
                each.cancel()
            await asyncio.gather(*flood, return_exceptions=True)
    finding.notes |= {"beta's first token s": [round(each, 2) for each in times]}


async def _flood(alpha: ClientSession, choices: int) -> None:
    """Sends urgent requests, and repeats rejected ones."""
    body = {"prompt": "Count:", "max_tokens": LONG, "ignore_eos": True, "n": choices, "priority": -100, "stream": True}
    while True:
        with suppress(ClientError, OSError, TimeoutError):
            async with alpha.post("/v1/completions", json=body) as answer:
                async for _ in answer.content.iter_any():
                    pass
        await asyncio.sleep(0.1)


async def _first_token(beta: ClientSession, finding: Finding) -> float:
    body = {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4, "stream": True}
    began = time.monotonic()
    async with beta.post("/v1/chat/completions", json=body) as answer:
        async for line in answer.content:
            if b'"content":"' in line.replace(b'"content":""', b""):
                break
        first = time.monotonic() - began
        status = answer.status
    finding.check(status == 200, "beta was refused", status)
    finding.check(first < STARVED_S, "beta waited for its first token", f"{first:.1f} s")
    return first
