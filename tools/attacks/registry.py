"""The attacks by name, in the order of execution."""

import time
from contextlib import nullcontext

from aiohttp import ClientError

from tools.attacks.authorisation import authorisation
from tools.attacks.bombing import bombing
from tools.attacks.fairness import fairness
from tools.attacks.grammars import grammars
from tools.attacks.heartbeat import watched
from tools.attacks.isolation import isolation
from tools.attacks.pages import pages
from tools.attacks.silent import silent
from tools.attacks.ssrf import ssrf
from tools.attacks.target import Attack, Finding, Target
from tools.attacks.texts import texts

ATTACKS = {
    "authorisation": Attack(authorisation),
    "isolation": Attack(isolation),
    "ssrf": Attack(ssrf),
    "grammars": Attack(grammars, heartbeat=True),
    "fairness": Attack(fairness, heartbeat=True),
    "bombs": Attack(bombing, heartbeat=True),
    "texts": Attack(texts, heartbeat=True),
    "pages": Attack(pages, keys=False),
    "silent": Attack(silent, keys=None),
}


async def attack(name: str, target: Target) -> Finding:
    finding, chosen, began = Finding(), ATTACKS[name], time.monotonic()
    try:
        async with watched(target, finding) if chosen.heartbeat else nullcontext():
            await chosen.run(target, finding)
    except (ClientError, OSError, TimeoutError) as error:
        finding.check(False, "the server does not answer as it should", repr(error))
    finding.seconds = round(time.monotonic() - began, 1)
    return finding


def fits(name: str, target: Target) -> bool:
    return ATTACKS[name].keys in (None, bool(target.keys))
