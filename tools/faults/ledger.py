"""Records acknowledged writes, which must be there after a restart."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from aiohttp import ClientSession

Body = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Promise:
    """`kept` checks the answer to GET `path`; None: deleted, the answer is 404."""

    what: str
    path: str
    kept: Callable[[Body], bool] | None


@dataclass(frozen=True, slots=True)
class RepeatedRequest:
    """A request without an answer: repeated with its idempotency key, it must be stored once."""

    path: str
    body: Body
    key: str


@dataclass(slots=True)
class Ledger:
    promises: dict[str, Promise] = field(default_factory=dict)  # by path; the last one counts
    files: dict[str, bytes] = field(default_factory=dict)  # by id
    batches: list[str] = field(default_factory=list)  # ids
    repeats: list[RepeatedRequest] = field(default_factory=list)
    num_acknowledged: int = 0
    num_refused: dict[int, int] = field(default_factory=dict)  # by status

    def promise(self, what: str, path: str, kept: Callable[[Body], bool] | None) -> None:
        self.promises[path] = Promise(what, path, kept)
        self.num_acknowledged += 1

    def refused(self, status: int) -> None:
        self.num_refused[status] = self.num_refused.get(status, 0) + 1


async def broken(ledger: Ledger, client: ClientSession) -> list[str]:
    """Descriptions of the promises that were not kept."""
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
