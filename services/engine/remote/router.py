"""Which upstream takes a job: the one of its key as long as that has not much more to do than the others."""

import asyncio
from collections.abc import Sequence
from hashlib import blake2b

from services.engine.base import Job
from services.engine.remote.upstream import Upstream

CHECK_S = 5.0  # between two checks of each upstream
ATTEMPTS = 3  # upstreams that are tried before the first token
KEY_TOKENS = 256  # of a prompt without a key of its own
GAP = 8  # requests that an upstream may have more than the least busy one,
FACTOR = 1.5  # and so many times as many


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
        key = _key(job)
        ranked = sorted(self.upstreams, key=lambda upstream: _rank(key, upstream.name))
        return sorted(_by_load(ranked), key=lambda upstream: not upstream.healthy)[:ATTEMPTS]

    async def _watch(self) -> None:
        while True:
            await asyncio.gather(*(upstream.check() for upstream in self.upstreams))
            await asyncio.sleep(CHECK_S)


def _key(job: Job) -> bytes:
    if job.affinity:
        return job.affinity.encode()
    return b"".join(token.to_bytes(4, "little") for token in job.prompt[:KEY_TOKENS])


def _rank(key: bytes, name: str) -> bytes:
    """Rendezvous hashing: when an upstream comes or goes, only its own keys move."""
    return blake2b(key, key=blake2b(name.encode(), digest_size=32).digest(), digest_size=8).digest()


def _by_load(ranked: list[Upstream]) -> list[Upstream]:
    """Those that have far too much to do go behind the others."""
    least = min(upstream.running for upstream in ranked)
    return sorted(ranked, key=lambda upstream: upstream.running > max(least + GAP, least * FACTOR))
