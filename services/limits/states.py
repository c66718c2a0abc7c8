"""Where the states of limits are: in this process, or in the database that several processes share."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any, Protocol

from services.history.store import Store
from services.limits.state import LimitState, Running


class States(Protocol):
    def locked(self, subjects: Sequence[str]) -> Any:
        """A context manager with the states by subject; they are kept, unless an error leaves it."""


class MemoryStates:
    """The block must not await."""

    def __init__(self) -> None:
        self._states: dict[str, LimitState] = {}

    @asynccontextmanager
    async def locked(self, subjects: Sequence[str]) -> AsyncIterator[Mapping[str, LimitState]]:
        yield {subject: self._states.setdefault(subject, LimitState()) for subject in subjects}


class DatabaseStates:
    def __init__(self, store: Store) -> None:
        self._store = store

    @asynccontextmanager
    async def locked(self, subjects: Sequence[str]) -> AsyncIterator[Mapping[str, LimitState]]:
        async with self._store.writing() as repositories:
            stored = await repositories.limits.lock(sorted(subjects))
            states = {subject: _state(stored.get(subject) or {}) for subject in subjects}
            yield states
            await repositories.limits.save({subject: asdict(state) for subject, state in states.items()})


def _state(data: Mapping[str, Any]) -> LimitState:
    running = {name: Running(**each) for name, each in data.get("running", {}).items()}
    return LimitState(**{**data, "running": running}) if data else LimitState()
