"""Alpha sends expensive grammars while beta uses a simple one."""

import asyncio
import time
from typing import Any

from aiohttp import ClientSession

from tools.attacks.target import Finding, Target

FORBIDDEN = (500, 502, 503, 504)
HOSTILE: dict[str, dict[str, Any]] = {
    "escapes in a pattern that never ends": {"guided_grammar": "start: /" + "\\/" * 32_000},
    "a text that never ends": {"guided_grammar": 'start: "' + "a" * 200_000},
    "a name that never ends": {"guided_grammar": 'start: <"' + "a" * 200_000},
    "empty lines": {"guided_grammar": 'x ::= "a"' + "\n" * 16_000},
    "many rules": {"guided_grammar": "start: r0\n" + "".join(f"r{i}: r{i + 1} | r{i + 2}\n" for i in range(8_000))},
    "a rule of itself": {"guided_grammar": "start: start start | start"},
    "optional ones": {"guided_regex": "(a|b)?" * 40_000},
    "counts of counts": {"guided_regex": "((((a{1,100}){1,100}){1,100}){1,100}){1,100}"},
    "everything and then much": {"guided_regex": ".*a" + ".{20000}"},
    "brackets": {"guided_regex": "(" * 50_000 + ")" * 50_000},
    "choices": {"guided_choice": [f"{i}" * 20 for i in range(900)]},
    "a deep schema": {"guided_json": '{"items":' * 100 + "{}" + "}" * 100},
    "a wide schema": {
        "guided_json": {"type": "object", "properties": {f"p{i}": {"type": "object"} for i in range(900)}}
    },
    "a schema of itself": {"guided_json": {"$ref": "#"}},
    "counts in a schema": {"guided_json": {"type": "array", "minItems": 10**9, "items": {"type": "string"}}},
    "all of many": {"guided_json": {"allOf": [{"properties": {f"a{i}": {"minLength": i}}} for i in range(400)]}},
}


async def grammars(target: Target, finding: Finding) -> None:
    hostile = list(HOSTILE.items())[:: target.every]
    async with target.client(target.alpha) as alpha, target.client(target.beta) as beta:
        attacks = asyncio.gather(*(_ask(alpha, body) for _, body in hostile))
        times = [await _choice(beta, finding, 0)]
        while not attacks.done():
            times.append(await _choice(beta, finding, len(times)))
        for (name, _), status in zip(hostile, await attacks, strict=True):
            finding.check(status not in FORBIDDEN, name, status)
    finding.notes |= {"beta's guided_choice": len(times), "its longest s": round(max(times), 2)}


async def _choice(beta: ClientSession, finding: Finding, number: int) -> float:
    """A new grammar each time, so that it is not cached."""
    began = time.monotonic()
    status = await _ask(beta, {"guided_choice": ["yes", "no", f"maybe {number}"]})
    finding.check(status == 200, "beta's guided_choice", status)
    return time.monotonic() - began


async def _ask(client: ClientSession, body: dict[str, Any]) -> int:
    chat = {"messages": [{"role": "user", "content": "Yes or no?"}], "max_tokens": 8, **body}
    async with client.post("/v1/chat/completions", json=chat) as answer:
        await answer.read()
        return answer.status
