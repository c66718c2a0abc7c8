"""Which upstream takes a job: the one of its key as long as that has not much more to do than the others."""

import asyncio
from collections.abc import Sequence

from services import rendezvous
from services.engine.base import Job
from services.engine.remote.upstream import Upstream

CHECK_S = 5.0  # between two checks of each upstream
ATTEMPTS = 3  # upstreams that are tried before the first token
KEY_TOKENS = 256  # of a prompt without a key of its own


class Router:
    def __init__(self, upstreams: Sequence[Upstream]) -> None:
        self.upstreams = upstreams
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._watching = asyncio.create_task(self._watch())

    async def stop(self) -> None:
        if self._watching:
            self._watching.cancel()
            await asyncio.wait([self._watching])
        for upstream in self.upstreams:
            await upstream.close()

    def candidates(self, job: Job) -> list[Upstream]:
        """In the order in which they are to be tried: ejected ones behind all others."""
        ranked = rendezvous.ranked(_key(job), self.upstreams, lambda each: each.name, lambda each: each.running)
        return sorted(ranked, key=lambda upstream: not upstream.healthy)[:ATTEMPTS]

    def by_load(self) -> list[Upstream]:
        """The least busy first, where no cache makes a difference."""
        return sorted(self.upstreams, key=lambda each: (not each.healthy, each.running))[:ATTEMPTS]

    async def _watch(self) -> None:
        while True:
            await asyncio.gather(*(upstream.check() for upstream in self.upstreams))
            await asyncio.sleep(CHECK_S)


def _key(job: Job) -> bytes:
    if job.affinity:
        return job.affinity.encode()
    return b"".join(token.to_bytes(4, "little") for token in job.prompt[:KEY_TOKENS])
