"""Who runs next. Plain Python: no tensors, no threads, no clock."""

import heapq
from collections import deque
from dataclasses import dataclass

from services.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Work:
    """The next `num_tokens` tokens of a sequence. Reading a prompt and writing an answer differ in nothing else."""

    sequence: Sequence
    slot: int
    num_tokens: int

    @property
    def start(self) -> int:
        return self.sequence.num_computed

    @property
    def end(self) -> int:
        return self.sequence.num_computed + self.num_tokens

    @property
    def samples(self) -> bool:
        """Whether the step reaches the last known token, so that a new one is drawn."""
        return self.end == len(self.sequence.tokens)


class Scheduler:
    """First come, first served; running sequences before waiting ones, under one token budget a step."""

    def __init__(self, num_slots: int, max_tokens: int) -> None:
        self._max_tokens = max(max_tokens, num_slots)  # every running sequence may always write its next token
        self._free = list(range(num_slots))  # a heap: low slots first keep the cache's active part dense
        self._waiting: deque[Sequence] = deque()
        self._running: list[Sequence] = []

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_cached(self) -> int:
        return sum(sequence.num_computed for sequence in self._running)

    @property
    def is_idle(self) -> bool:
        return not self._running and not self._waiting

    def add(self, sequence: Sequence) -> None:
        self._waiting.append(sequence)

    def schedule(self) -> list[Work]:
        """The next step: one token for each that is writing, then prompts in chunks of what is left."""
        self._drop_finished()
        self._admit_waiting()
        batch: list[Work] = []
        left = self._max_tokens
        for sequence in sorted(self._running, key=lambda sequence: sequence.num_pending > 1):
            if num_tokens := min(sequence.num_pending, left):
                assert sequence.slot is not None
                batch.append(Work(sequence, sequence.slot, num_tokens))
                left -= num_tokens
        return batch

    def drop_all(self) -> list[Sequence]:
        """Empties everything, for a stop or after a failed step."""
        dropped = [*self._running, *self._waiting]
        for sequence in dropped:
            sequence.finished = True
        self._drop_finished()
        return dropped

    def _drop_finished(self) -> None:
        for sequence in self._running:
            # asked once: another thread may cancel at any time, and a slot is given up in the same breath or kept
            if sequence.is_over and sequence.slot is not None:
                heapq.heappush(self._free, sequence.slot)
                sequence.slot = None
        self._running = [sequence for sequence in self._running if sequence.slot is not None]
        self._waiting = deque(sequence for sequence in self._waiting if not sequence.is_over)

    def _admit_waiting(self) -> None:
        while self._waiting and self._free:
            sequence = self._waiting.popleft()
            sequence.slot = heapq.heappop(self._free)
            self._running.append(sequence)
