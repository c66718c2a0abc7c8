"""The engine's core and its scheduler over memories that are always full: whatever requests are added, cancelled,
preempted or fail, each receives what it would receive alone.

Each run is played from one seed; SIMULATIONS=10000 plays more of them.
"""

import os
from asyncio import QueueEmpty
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor

from services.engine.base import ANYBODY, Piece, ThinkingLimit
from services.engine.execution.engine_core import EngineCore
from services.engine.execution.executor import OutOfMemory
from services.engine.execution.local_executor import LocalExecutor
from services.engine.execution.output_processor import OutputProcessor
from services.engine.execution.piece_stream import Mailbox
from services.engine.execution.request import Request
from services.engine.scheduling import fairness, ngram_proposer, scheduler
from services.engine.scheduling.scheduler import ScheduledSequence, Scheduler
from services.engine.scheduling.sequence import Sequence
from services.engine.scheduling.step import CacheChange, StepRow
from services.engine.streamer import RequestStreamer
from services.engine.token_texts import TokenTexts
from services.errors import EngineFailed
from tests.test_engine.fakes import END, LETTERS, Alphabet, GoingAhead, job
from tests.test_engine.test_pages import PagedMemory
from tests.test_engine.test_scheduler import Memory, digest

SEEDS = range(int(os.environ.get("SIMULATIONS", 30)))
STEPS = 50  # in which requests come
LENGTH = 24


@dataclass
class Remembering(GoingAhead):
    """Looks at all that it would attend to; breaks now and then, in the middle of what it writes."""

    memory: Memory | PagedMemory = field(default_factory=lambda: Memory(1))
    sequences: dict[str, Sequence] = field(default_factory=dict)
    chance: Random = field(default_factory=Random)
    faults: float = 0.0

    def apply(self, changes: list[CacheChange]) -> None:
        self.memory.apply(changes)

    def _entry(self, row: StepRow) -> ScheduledSequence:
        """As it was scheduled: the memory compares with all tokens of a sequence."""
        sequence = self.sequences[row.request_id]
        assert row.start == sequence.num_computed
        assert row.is_long is (self.short_length is not None and len(sequence.tokens) > self.short_length)
        assert row.is_long or self.short_length is None or row.end <= self.short_length
        draft = row.token_ids[len(sequence.tokens) - row.start :]
        return ScheduledSequence(sequence, row.slot, row.num_tokens, draft)

    def run(self, rows: list[StepRow]) -> Tensor:
        batch = [self._entry(row) for row in rows]
        fault = self.chance.random()
        if fault < self.faults:
            self.memory.poison(batch)
            raise RuntimeError("a step failed")
        self.memory.compute(batch)
        if fault < 3 * self.faults:
            raise torch.OutOfMemoryError
        return self._broken(super().run(rows))

    def run_lookahead(self, rows: list[StepRow], tokens: Tensor) -> Tensor | None:
        assert all(row.is_long or self.short_length is None or row.end <= self.short_length for row in rows)
        assert isinstance(self.memory, PagedMemory)
        if not all(self.memory.pages.owns(row.slot, row.start) for row in rows):
            return None
        if self.chance.random() < self.faults:
            raise torch.OutOfMemoryError
        for entry, token in zip(map(self._entry, rows), tokens.tolist(), strict=True):
            self.memory.write(entry, [digest([*entry.sequence.tokens, token], entry.sequence.is_long)])
        return self._broken(super().run_lookahead(rows, tokens))

    def _broken(self, logits: Tensor | None) -> Tensor:
        assert logits is not None
        if len(logits) and self.chance.random() < self.faults:
            logits[self.chance.randrange(len(logits))] = torch.nan
        return logits


class World:
    def __init__(self, seed: int) -> None:
        self.chance = Random(seed)
        self.unrest = self._choice(0, 0.005, 0.05)
        self.faults = self._choice(0, 0, 0.01, 0.05)
        self.paged = self._choice(True, False)
        self.owners = self._choice((ANYBODY,), ("alpha", "beta"), ("alpha", "beta", "gamma"))
        self.runner = self._runner(slots=self._choice(1, 3, 5))
        self.scheduler = Scheduler(
            self.runner.num_slots,
            self._choice(1, 5, 9, 40),
            cache_tokens=self.runner.cache_tokens,
            min_reuse=self._choice(None, 1, 3),
            speculative=not self.paged,
            block_size=self._choice(1, 1, 3, 8),
            page_size=self.runner.page_size,
            prompt_share=self._choice(1, 1, 0.5),
            short_length=self.runner.short_length,
        )
        output = OutputProcessor(TokenTexts(Alphabet()), self._deliver)
        self.core = EngineCore(LocalExecutor(self.runner), self.scheduler, output)
        self.asked: list[Request] = []

    def _choice(self, *of: Any) -> Any:
        return self.chance.choice(of)

    def _runner(self, slots: int) -> Remembering:
        page_size = self._choice(1, 2, 3, 8) if self.paged else 1
        pages = int(-(-LENGTH // page_size) * self._choice(1, 1.3, 2))
        return Remembering(
            num_slots=slots,
            length=LENGTH,
            page_size=page_size,
            cache_tokens=pages * page_size,
            asynchronous=self.paged,
            memory=PagedMemory(pages, page_size, slots, LENGTH) if self.paged else Memory(slots, LENGTH),
            short_length=self._choice(None, None, 7, 15),
            chance=self.chance,
            faults=self.faults,
        )

    def _deliver(self, deliveries: list[Any]) -> None:
        for mailbox, item in deliveries:
            mailbox.put_nowait(item)

    def ask(self) -> None:
        prompt = self._choice("ab", "abcd", "xy")[: self.chance.randint(1, 4)] * self.chance.randint(1, 5)
        params = {"thinking": self._choice(None, None, ThinkingLimit(2, end=self.chance.randrange(LETTERS)))}
        params |= {"logprobs": self._choice(None, None, None, 1), "stop": self._choice((), (), ("no",), ("k",))}
        asked = replace(
            job(prompt, name=str(len(self.asked)), **params),
            priority=self._choice(0, 0, 1),
            owner=self._choice(*self.owners),
        )
        room = LENGTH - len(prompt)
        sequence = Sequence(asked, self._choice(room, self.chance.randint(1, room)), frozenset([END]))
        self.runner.sequences[asked.id] = sequence
        streamer = RequestStreamer(Alphabet(), asked.prompt, asked.sampling, frozenset([END]))
        self.asked.append(Request(sequence, streamer, Mailbox(), 0.0))
        self.core.add(self.asked[-1])

    def step(self) -> None:
        """As the engine's thread does it, with cancellations between the steps."""
        for request in self.asked:
            request.sequence.cancelled |= not request.sequence.finished and self.chance.random() < self.unrest
        try:
            self.core.step()
        except (RuntimeError, OutOfMemory):
            self.core.fail_step()
        assert self.runner.memory.num_held <= (self.runner.cache_tokens or 0)
        if self.scheduler.is_idle:
            self.scheduler.check()
            assert not self.core.has_requests

    def check(self, request: Request) -> None:
        sequence, items = request.sequence, _items(request.mailbox)
        ends = [item for item in items if not isinstance(item, Piece) or item.finish]
        heard = items[: items.index(ends[0]) + 1] if ends else items
        failed = isinstance(heard[-1], EngineFailed) if heard else False
        assert ends or sequence.cancelled  # nobody waits for ever
        assert self.faults or not failed
        assert not any(isinstance(item, Piece) for item in items[len(heard) :])
        tokens = [token for item in heard if isinstance(item, Piece) for token in item.token_ids]
        expected = _alone(request)
        assert tokens == (expected[: len(tokens)] if failed or not ends else expected)


def _items(mailbox: Mailbox) -> list[Any]:
    items = []
    while True:
        try:
            items.append(mailbox.get_nowait())
        except QueueEmpty:
            return items


def _alone(request: Request) -> list[int]:
    sequence = Sequence(request.sequence.job, request.sequence.max_tokens, frozenset([END]))
    streamer = RequestStreamer(Alphabet(), sequence.job.prompt, sequence.job.sampling, frozenset([END]))
    while not streamer.finish and not sequence.finished:
        sequence.append(sequence.force_token((sequence.tokens[-1] + 1) % LETTERS))
        streamer.put(sequence.tokens[-1])
    return sequence.tokens[len(sequence.job.prompt) :]


@pytest.mark.parametrize("seed", SEEDS)
def test_everybody_hears_what_it_would_hear_alone(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "HEADROOM", seed % 3)
    monkeypatch.setattr(scheduler, "RECOVERY", 8)
    monkeypatch.setattr(fairness, "SLICE", 1 + seed % 2)
    monkeypatch.setattr(fairness, "QUANTUM", 2 + seed % 3)
    monkeypatch.setattr(ngram_proposer, "NGRAM_SIZE", 1)
    world = World(seed)
    for step in range(50 * STEPS):
        if step < STEPS and world.scheduler.num_waiting < 5 and world.chance.random() < 0.4:
            world.ask()
        world.step()
        if step >= STEPS and world.scheduler.is_idle:
            break

    assert world.scheduler.is_idle
    for request in world.asked:
        world.check(request)
