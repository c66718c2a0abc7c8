"""What is measured, what it is asked in one round, and what came of it."""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from tools.bench.answer import Answer
from tools.bench.load import Load


@dataclass(frozen=True, slots=True)
class Turn:
    load: Load
    seed: int
    number: int  # of the round
    seconds: float  # that it may take


@dataclass(frozen=True, slots=True)
class Played:
    seconds: float
    answers: list[Answer]


class Unreachable(Exception):
    """A target that cannot be measured, found out before anything was."""


class Opened(Protocol):
    async def play(self, turn: Turn) -> Played: ...


class Target(Protocol):
    @property
    def name(self) -> str: ...

    async def check(self) -> None:
        """Raises Unreachable."""

    def opened(self) -> AbstractAsyncContextManager[Opened]:
        """For the whole run; raises Unreachable."""
