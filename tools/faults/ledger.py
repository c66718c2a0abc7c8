"""What a server has acknowledged, and what it must therefore still know when it comes back."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientSession

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Promise:
    """`kept` reads the answer to GET `path`; None: it was deleted, the answer is 404."""

    what: str
    path: str
    kept: Callable[[Body], bool] | None


@dataclass(frozen=True, slots=True)
class Repeat:
    """A request that may or may not have been heard: sent again with its key, it must count once."""

    path: str
    body: Body
    key: str


@dataclass(slots=True)
class Ledger:
    promises: dict[str, Promise] = field(default_factory=dict)  # by path: the last word on it counts
    repeats: list[Repeat] = field(default_factory=list)
    num_acknowledged: int = 0
    num_refused: dict[int, int] = field(default_factory=dict)  # by status

    def promise(self, what: str, path: str, kept: Callable[[Body], bool] | None) -> None:
        self.promises[path] = Promise(what, path, kept)
        self.num_acknowledged += 1

    def refused(self, status: int) -> None:
        self.num_refused[status] = self.num_refused.get(status, 0) + 1


async def broken(ledger: Ledger, client: ClientSession) -> list[str]:
    """The promises that were not kept, in words."""
    return [found for promise in ledger.promises.values() if (found := await _broken(promise, client))]


async def _broken(promise: Promise, client: ClientSession) -> str | None:
    async with client.get(promise.path) as response:
        status = response.status
        body = await response.json() if status == 200 else {}
    if promise.kept is None:
        return None if status == 404 else f"{promise.what} {promise.path}: deleted, but there ({status})"
    if status != 200:
        return f"{promise.what} {promise.path}: lost ({status})"
    return None if promise.kept(body) else f"{promise.what} {promise.path}: not what was acknowledged: {body}"
