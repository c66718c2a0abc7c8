"""Which processes that share a database are alive.

On PostgreSQL each process shows a sign of life every second, by the database's clock. SQLite has one process: it judges
by process ids and the age of checkpoints alone.
"""

import time
from collections.abc import Callable

from database.repositories import Repositories
from services.history.store import Store

SILENT_S = 5.0  # without a sign of life a process is gone
FORGOTTEN_S = 24 * 3600.0


class Lease:
    def __init__(self, store: Store, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._name = name
        self._clock = clock
        self._beaten_at = -SILENT_S
        self._unbroken_since = clock()
        self.has_others = False  # that are alive

    async def beat(self) -> None:
        if not self._store.is_shared:
            return
        async with self._store.writing() as repositories:
            await repositories.processes.beat(self._name)
            self.has_others = await repositories.processes.num_alive(SILENT_S) > 1
            await repositories.processes.forget(FORGOTTEN_S)
        now = self._clock()
        if now - self._beaten_at > SILENT_S / 2:
            self._unbroken_since = now
        self._beaten_at = now

    async def silent(self, repositories: Repositories) -> set[str]:
        """Names of the processes that are gone. After an outage of the database nobody is, until all had time to show
        a sign of life again."""
        if not self._store.is_shared or self._clock() - self._unbroken_since < SILENT_S:
            return set()
        return await repositories.processes.silent(SILENT_S)

    async def leave(self) -> None:
        if self._store.is_shared:
            async with self._store.writing() as repositories:
                await repositories.processes.leave(self._name)
