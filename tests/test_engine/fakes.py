"""An engine without a model: a runner that counts up, and one that waits to be told."""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from services.engine.base import Job, Piece, SamplingParams
from services.engine.execution.local_executor import LocalExecutor
from services.engine.execution.runner import Runner
from services.engine.loading.loader import Loaded
from services.engine.local import LocalEngine
from services.engine.scheduling.step import CacheChange, StepRow

PATIENCE = 20  # seconds; only a fault takes longer than a moment
LETTERS = 26
END = LETTERS - 1  # z


class Alphabet:
    """A tokenizer whose tokens are letters."""

    chat_template = None

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        return [ord(letter) - ord("a") for letter in text]

    def decode(self, ids: list[int], skip_special_tokens: bool = False) -> str:
        return "".join(chr(ord("a") + token) for token in ids)


@dataclass
class Counting:
    """Says the alphabet on from the last letter; `before` may hold it up or break it."""

    num_slots: int = 2
    length: int = 64
    before: Callable[[list[StepRow]], None] = lambda batch: None
    steps: list[list[str]] = field(default_factory=list)  # the ids of the jobs in each
    changes: list[CacheChange] = field(default_factory=list)
    reuses: bool = True
    snapshots: Any = None
    supports_drafts: bool = False
    cache_tokens: int | None = None
    vision: Any = None
    page_size: int = 1
    short_length: int | None = None
    asynchronous: bool = False

    @property
    def batch_sizes(self) -> list[int]:
        return [self.num_slots]

    def apply(self, changes: list[CacheChange]) -> None:
        self.changes += changes

    def run(self, rows: list[StepRow]) -> Tensor:
        self.steps.append([row.request_id for row in rows])
        self.before(rows)
        asked = [token for row in rows if row.num_logits for token in row.token_ids[-row.num_logits :]]
        following = [token + 1 for token in asked]
        return torch.nn.functional.one_hot(torch.tensor(following, dtype=torch.long) % LETTERS, LETTERS).float()

    def run_lookahead(self, rows: list[StepRow], tokens: Tensor) -> Tensor | None:
        return None


@dataclass
class GoingAhead(Counting):
    """As on a GPU: what it says is known late, and lasts until the next step."""

    asynchronous: bool = True
    num_ahead: int = 0
    latest: Tensor = field(default_factory=lambda: torch.empty(0))

    def run(self, rows: list[StepRow]) -> Tensor:
        self.latest.fill_(torch.nan)
        self.latest = super().run(rows)
        return self.latest

    def run_lookahead(self, rows: list[StepRow], tokens: Tensor) -> Tensor | None:
        assert not any(row.token_ids for row in rows)
        self.num_ahead += 1
        self.latest.fill_(torch.nan)
        self.latest = torch.nn.functional.one_hot((tokens + 1) % LETTERS, LETTERS).float()
        return self.latest


class Gate:
    """Stops each step until the test lets it pass."""

    def __init__(self) -> None:
        self._arrived = threading.Semaphore(0)
        self._passes = threading.Semaphore(0)

    def __call__(self, rows: list[StepRow]) -> None:
        self._arrived.release()
        assert self._passes.acquire(timeout=PATIENCE)

    async def arrival(self) -> None:
        """Returns once the engine is in the middle of a step."""
        assert await asyncio.to_thread(self._arrived.acquire, timeout=PATIENCE)

    def open(self, steps: int = 1000) -> None:
        self._passes.release(steps)


def loaded(model: Any = None, tokenizer: Any = None, eos: int = END) -> Loaded:
    vocabulary = model.config.vocab_size if model else LETTERS
    return Loaded(model, tokenizer or Alphabet(), frozenset([eos]), 64, torch.device("cpu"), torch.float32, vocabulary)


def job(prompt: str = "abc", name: str = "job", **params: Any) -> Job:
    return Job(name, tuple(Alphabet().encode(prompt)), SamplingParams(**{"temperature": 0, **params}))


@asynccontextmanager
async def running(
    runner: Runner, max_num_batched_tokens: int = 16, max_queue: int = 8, prefix_cache: bool = True
) -> AsyncGenerator[LocalEngine]:
    engine = LocalEngine(
        loaded(),
        LocalExecutor(runner),
        max_num_batched_tokens=max_num_batched_tokens,
        max_queue=max_queue,
        prefix_cache=prefix_cache,
    )
    engine.start()
    try:
        yield engine
    finally:
        await engine.stop()


async def said(pieces: AsyncGenerator[Piece, None]) -> str:
    return "".join([piece.text async for piece in pieces])


async def settled(engine: LocalEngine) -> None:
    """Returns once nothing runs and nothing waits."""
    async with asyncio.timeout(PATIENCE):
        await engine.settle()
