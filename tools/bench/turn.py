"""Protocols of a target, its load in one round, and the result."""

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
    seconds: float  # limit


@dataclass(frozen=True, slots=True)
class Played:
    seconds: float
    answers: list[Answer]


class Unreachable(Exception):
    """The target cannot be measured; raised before the first round."""


class Opened(Protocol):
    async def play(self, turn: Turn) -> Played: ...


class Target(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def model(self) -> str: ...

    async def check(self) -> None:
        """Raises Unreachable."""

    def opened(self) -> AbstractAsyncContextManager[Opened]:
        """Opens the target for the whole run; raises Unreachable."""
