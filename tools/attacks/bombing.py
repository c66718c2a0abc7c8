"""Bodies within the limit that ask for much work, one after the other, and a watcher beside them."""

import time

from tools.attacks.target import Finding, Target
from tools.faults.bombs import bombs

ANYWHERE = ("/v1/chat/completions", "/v1/messages", "/predict")  # of those made for no route in particular
LONGEST_S = 90.0  # after which no other is begun


async def bombing(target: Target, finding: Finding) -> None:
    began, table = time.monotonic(), list(bombs(ANYWHERE))[:: target.every]
    async with target.client(target.alpha if target.keys else None) as client:
        for number, bomb in enumerate(table):
            if time.monotonic() - began > LONGEST_S:
                finding.notes["not sent, for want of time"] = len(table) - number
                break
            headers = {"Content-Type": "application/json"}
            async with client.request(bomb.method, bomb.path, data=bomb.body(), headers=headers) as answer:
                text = await answer.text()
            finding.check(answer.status < 500, str(bomb), f"{answer.status} {text}")
