"""Bodies within the limit that cause much work, one after the other, while the probe is watched."""

import time

from tools.attacks.target import Finding, Target
from tools.faults.bombs import bombs

ANYWHERE = ("/v1/chat/completions", "/v1/messages", "/predict")  # for bodies that are not made for a certain route
MAX_S = 90.0  # after which no further request is started


async def bombing(target: Target, finding: Finding) -> None:
    began, table = time.monotonic(), list(bombs(ANYWHERE))[:: target.every]
    async with target.client(target.alpha if target.keys else None) as client:
        for number, bomb in enumerate(table):
            if time.monotonic() - began > MAX_S:
                finding.notes["not sent, for want of time"] = len(table) - number
                break
            headers = {"Content-Type": "application/json"}
            async with client.request(bomb.method, bomb.path, data=bomb.body(), headers=headers) as answer:
                text = await answer.text()
            finding.check(answer.status < 500, str(bomb), f"{answer.status} {text}")
