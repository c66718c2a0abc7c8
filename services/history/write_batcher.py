"""Writes that wait for the store at the same moment go there together: one transaction, one commit, few statements.

Where one of them makes that fail, each goes by itself, and its error reaches it alone. Who is cancelled while it waits
is left out; what is being written by then is written.
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from services.errors import ServiceError, Unavailable

Write = TypeVar("Write")

MOST = 256  # writes of one transaction: others wait for it


@dataclass(slots=True)
class _Waiting(Generic[Write]):
    write: Write
    done: "asyncio.Future[None]" = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def settle(self, error: Exception | None) -> None:
        if self.done.done():
            return
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)


class WriteBatcher(Generic[Write]):
    """`commit` writes all that it is given, in one transaction, but for what it refuses: of that it says why."""

    def __init__(self, commit: Callable[[Sequence[Write]], Awaitable[Mapping[Write, ServiceError]]]) -> None:
        self._commit = commit
        self._waiting: list[_Waiting[Write]] = []
        self._apart: list[_Waiting[Write]] = []  # they have failed together
        self._task: asyncio.Task[None] | None = None

    def add(self, write: Write) -> "asyncio.Future[None]":
        """Done when it is durable; whether anybody waits for that or not."""
        waiting = _Waiting(write)
        self._waiting.append(waiting)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="history writer")
        return waiting.done

    async def _run(self) -> None:
        while self._apart or self._waiting:
            if group := [each for each in self._next() if not each.done.cancelled()]:
                await self._write(group)

    def _next(self) -> list[_Waiting[Write]]:
        if self._apart:
            return [self._apart.pop(0)]
        group, self._waiting = self._waiting[:MOST], self._waiting[MOST:]
        return group

    def _all(self) -> list[_Waiting[Write]]:
        waiting, self._apart, self._waiting = [*self._apart, *self._waiting], [], []
        return waiting

    async def _write(self, group: list[_Waiting[Write]]) -> None:
        try:
            refused = await self._commit([each.write for each in group])
        except Unavailable as away:  # for all that wait: to try once for each would take too long
            for each in [*group, *self._all()]:
                each.settle(away)
        except Exception as error:
            if len(group) > 1:
                self._apart = group
            else:
                group[0].settle(error)
        else:
            for each in group:
                each.settle(refused.get(each.write))
