"""Many callers' inputs in batches: an equal share of each batch for every owner, inputs of similar length together."""

import asyncio
import contextlib
from bisect import insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from services.engine.base import ANYBODY, Embeddings
from services.engine.embedding.encoder import Floats, Tokens
from services.errors import ServiceError


class Call:
    """One caller's inputs on their way through the batches; the engine's thread owns all but `over` and `future`."""

    def __init__(self, inputs: Sequence[Tokens], dimensions: int, owner: str = ANYBODY) -> None:
        self.owner = owner
        self._loop = asyncio.get_running_loop()
        self.future: asyncio.Future[Embeddings] = self._loop.create_future()
        self.over = False  # answered, or its caller has gone: worth no more work
        self.tokens_left = sum(map(len, inputs))
        self._inputs = inputs
        self._untaken = sorted(range(len(inputs)), key=lambda index: -len(inputs[index]))
        self._vectors = np.empty((len(inputs), dimensions), dtype="<f4")
        self._missing = len(inputs)

    @property
    def least(self) -> int:
        """Tokens of the shortest input not yet taken."""
        return len(self._inputs[self._untaken[-1]]) if self._untaken else 0

    def take(self, tokens: int) -> "list[Row]":
        """The shortest inputs not yet taken, worth at most `tokens`; one at least."""
        rows: list[Row] = []
        while self._untaken and (not rows or len(self._inputs[self._untaken[-1]]) <= tokens):
            row = Row(self, index := self._untaken.pop(), self._inputs[index])
            tokens -= len(row.tokens)
            self.tokens_left -= len(row.tokens)
            rows.append(row)
        return rows

    def put_back(self, index: int) -> None:
        insort(self._untaken, index, key=lambda untaken: -len(self._inputs[untaken]))
        self.tokens_left += len(self._inputs[index])

    def add(self, index: int, vector: Floats) -> None:
        self._vectors[index] = vector
        self._missing -= 1
        if not self._missing:
            self.settle(Embeddings(self._vectors.tobytes(), self._vectors.shape[1]))

    def settle(self, outcome: Embeddings | ServiceError) -> None:
        self.over = True
        with contextlib.suppress(RuntimeError):  # its loop is closed: nobody is left to tell
            self._loop.call_soon_threadsafe(self._resolve, outcome)

    def _resolve(self, outcome: Embeddings | ServiceError) -> None:
        if self.future.done():
            return
        match outcome:
            case Embeddings():
                self.future.set_result(outcome)
            case _:
                self.future.set_exception(outcome)


@dataclass(frozen=True, slots=True)
class Row:
    call: Call
    index: int
    tokens: Tokens


def share(calls: Sequence[Call], budget: int) -> list[Row]:
    """What is embedded next: every owner gets an equal part of `budget` tokens, and what the small ones leave of theirs
    goes to the larger. So one call never waits for the end of another key's thousands."""
    owners: dict[str, list[Call]] = {}
    for call in calls:
        owners.setdefault(call.owner, []).append(call)
    if len(owners) < 2:
        return _among_calls(calls, budget)
    rows: list[Row] = []
    neediest_last = sorted(owners.values(), key=lambda own: sum(call.tokens_left for call in own))
    for claimants, own in zip(range(len(owners), 0, -1), neediest_last, strict=True):
        part = budget // claimants
        taken = _among_calls(_first(own, part), part)
        budget = max(0, budget - sum(len(row.tokens) for row in taken))
        rows += taken
    return rows


def _first(calls: Sequence[Call], budget: int) -> list[Call]:
    """As many as may have an input each; one at least."""
    lengths = accumulate(call.least for call in calls)
    return [
        call for index, (call, length) in enumerate(zip(calls, lengths, strict=True)) if not index or length <= budget
    ]


def _among_calls(calls: Sequence[Call], budget: int) -> list[Row]:
    """An equal part for every call: one with one input never waits for the end of one with thousands."""
    rows: list[Row] = []
    neediest_last = sorted(calls, key=lambda call: call.tokens_left)
    for claimants, call in zip(range(len(calls), 0, -1), neediest_last, strict=True):
        taken = call.take(budget // claimants)
        budget = max(0, budget - sum(len(row.tokens) for row in taken))
        rows += taken
    return rows


def cut(rows: Sequence[Row], budget: int, *, pads: bool = True) -> Iterator[list[Row]]:
    """Batches of similar lengths, at most `budget` tokens each, padding and all (a longer row stands alone)."""
    batch: list[Row] = []
    real = 0
    for row in sorted(rows, key=lambda row: len(row.tokens)):
        real += len(row.tokens)
        padded = len(row.tokens) * (len(batch) + 1) if pads else real
        # a batch of its own costs about as much as a sixteenth of a full one in padding
        if batch and (padded > budget or padded - real > budget // 16):
            yield batch
            batch, real = [], len(row.tokens)
        batch.append(row)
    if batch:
        yield batch
