"""Who runs next. Plain Python: no tensors, no threads, no clock."""

from bisect import insort
from collections import Counter
from dataclasses import dataclass
from itertools import count

from services.engine.scheduling.fairness import RoundRobin, heaviest, prefill_shares, rank, victim
from services.engine.scheduling.ngram_proposer import MAX_DRAFT_TOKENS, MAX_STEP_TOKENS
from services.engine.scheduling.sequence import PrefixWait, Sequence
from services.engine.scheduling.slots import MIN_REUSE, Prefix, Slots
from services.engine.scheduling.step import CacheChange, StepRow

HEADROOM = 16  # tokens that each running sequence may write before the cache is full again
RECOVERY = 256  # steps after which a budget that was halved for want of memory is doubled


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """The next `num_tokens` tokens of a sequence. Reading a prompt and writing an answer differ in nothing else.

    The last of them may be a `draft`: guesses how the answer goes on, to be kept as far as they are right.
    """

    sequence: Sequence
    slot: int
    num_tokens: int
    draft: tuple[int, ...] = ()

    @property
    def start(self) -> int:
        return self.sequence.num_computed

    @property
    def end(self) -> int:
        return self.sequence.num_computed + self.num_tokens

    @property
    def samples(self) -> bool:
        """Whether the step reaches the last known token, so that a new one is drawn."""
        return self.end - len(self.draft) == len(self.sequence.tokens)

    @property
    def scores_prompt(self) -> bool:
        """Whether each of its tokens is asked how likely the prompt's next one is."""
        job = self.sequence.job
        return job.sampling.prompt_logprobs is not None and self.start < len(job.prompt) - 1

    @property
    def num_logits(self) -> int:
        if self.scores_prompt:
            return self.num_tokens
        return 1 + len(self.draft) if self.samples else 0

    def row(self) -> StepRow:
        sequence, start = self.sequence, self.sequence.num_computed
        tokens = (*sequence.tokens[start : start + self.num_tokens], *self.draft)
        return StepRow(sequence.job.id, self.slot, start, self.num_tokens, self.num_logits, tokens, sequence.images)


@dataclass(frozen=True, slots=True)
class CacheRoom:
    """For who comes in."""

    free: int  # slots
    claimed: int  # tokens of the cache

    def after(self, claim: int) -> "CacheRoom":
        """Once somebody has left."""
        return CacheRoom(self.free + 1, self.claimed - claim)


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: first the changes to the cache, in their order, then the works, all at once."""

    changes: list[CacheChange]
    scheduled: list[ScheduledSequence]


class Scheduler:
    """By priority, then first come, first served, and in rounds between owners; running sequences before waiting ones,
    under one token budget a step.

    `cache_tokens`: what all slots together may hold, counted in blocks, and in whole pages of `page_size` tokens; None:
    each may be full. `prompt_share` of it may be taken when a sequence comes in; the rest is for them to grow.
    """

    def __init__(
        self,
        num_slots: int,
        max_tokens: int,
        *,
        cache_tokens: int | None = None,
        min_reuse: int | None = MIN_REUSE,
        speculative: bool = False,
        block_size: int = 1,
        page_size: int = 1,
        prompt_share: float = 1,
    ) -> None:
        self._limit = max(max_tokens, num_slots)  # every running sequence may always write its next token
        self._max_tokens = self._limit
        self._cache_tokens = cache_tokens and _down(_down(cache_tokens, block_size), page_size)
        self._min_reuse = min_reuse or 0
        self._speculative = speculative
        self._block_size = block_size
        self._page_size = page_size
        self._prompt_share = prompt_share
        self._slots = Slots(num_slots, min_reuse, block_size, page_size)
        self._waiting: list[Sequence] = []  # in the order in which they will run
        self._running: list[Sequence] = []
        self._arrivals = count()
        self._rounds = RoundRobin()
        self._steps_shrunk = 0
        self._step_tokens = 0
        self.num_preemptions = 0
        self.num_queried = 0  # prompt tokens that were looked for among the slots
        self.num_reused = 0  # and found
        self.num_drafted = 0  # tokens that were guessed
        self.num_accepted = 0  # and right

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
        sequence.arrival = next(self._arrivals)
        insort(self._waiting, sequence, key=rank)

    def schedule(self) -> Batch:
        """The next step: one token for each that is writing, then prompts in chunks of what is left."""
        self._drop_over()
        self._preempt_until_it_fits()
        self._admit_waiting()
        self._slots.close_up()
        scheduled = self._share_budget()
        if self._cache_tokens is not None:
            self._slots.make_room(self._slots.num_written - self._cache_tokens)
        return Batch(self._slots.changes(), scheduled)

    def record_acceptance(self, entry: ScheduledSequence, num_right: int) -> None:
        """How many tokens of a draft were right."""
        self.num_drafted += len(entry.draft)
        self.num_accepted += num_right
        entry.sequence.proposer.record_acceptance(num_right, len(entry.sequence.tokens))

    def fail(self, sequence: Sequence) -> None:
        """Ends a sequence whose keys and values are not to be trusted, if it still has a place."""
        sequence.finished = True
        if sequence.slot is not None:
            self._slots.invalidate(sequence)
            self._running.remove(sequence)

    def drop_running(self) -> list[Sequence]:
        """Ends all that run, after a failed step; what the cache holds now, nobody knows."""
        dropped, self._running = self._running, []
        for sequence in dropped:
            sequence.finished = True
        self._slots.forget_all()
        return dropped

    def drop_all(self) -> list[Sequence]:
        """Empties everything, for a stop."""
        dropped = [*self.drop_running(), *self._waiting]
        for sequence in dropped:
            sequence.finished = True
        self._waiting = []
        return dropped

    def shrink(self) -> bool:
        """Halves what a step may take, after one that found no memory; False: it was one token."""
        if self._step_tokens <= 1:
            return False
        self._max_tokens = self._step_tokens // 2
        self._steps_shrunk = 0
        while len(self._running) > self._max_tokens:
            self._preempt()
        return True

    def check(self) -> None:
        """At rest every slot has come home."""
        assert self.is_idle
        assert self._slots.num_free == len(self._slots)

    # --- leaving ---

    def _drop_over(self) -> None:
        for sequence in self._running:
            # asked once: another thread may cancel at any time, and a slot is given up in the same breath or kept
            if sequence.is_over:
                self._slots.give_back(sequence)
            else:
                self._slots.advance(sequence, sequence.num_computed)
        self._running = [sequence for sequence in self._running if sequence.slot is not None]
        self._waiting = [sequence for sequence in self._waiting if not sequence.is_over]

    def _preempt_until_it_fits(self) -> None:
        """The last one alone fits: it would not have been let in otherwise."""
        while self._cache_tokens is not None and self._num_claimed > self._cache_tokens and len(self._running) > 1:
            self._preempt()

    def _preempt(self, sequence: Sequence | None = None) -> None:
        """Back to the queue with what it has said; its tokens are computed again, unless its slot still holds them."""
        sequence = sequence or heaviest(self._running, self._claim)
        self._running.remove(sequence)
        self._slots.give_back(sequence)
        sequence.num_computed = 0
        self.num_preemptions += 1
        insort(self._waiting, sequence, key=rank)

    # --- coming in ---

    @property
    def _num_claimed(self) -> int:
        """What is held once every prompt is read."""
        return sum(map(self._claim, self._running))

    def _claim(self, sequence: Sequence) -> int:
        return _up(_up(len(sequence.tokens), self._block_size), self._page_size)

    def _admit_waiting(self) -> None:
        """In turns. Who waits for a prefix keeps its place and a slot, so that nobody who comes later takes it."""
        free = min(self._slots.num_free, self._max_tokens - len(self._running))
        claimed = self._num_claimed
        held = Counter(each.job.owner for each in self._running)
        for sequence in self._rounds.order(self._waiting, held):
            room = CacheRoom(free, claimed)
            for other in self._who_gives_way(sequence, room):
                held[other.job.owner] -= 1
                room = room.after(self._claim(other))
                self._preempt(other)
            if not self._is_enough(room, sequence):
                break
            free, claimed = room.free - 1, room.claimed + self._claim(sequence)
            if self._admit(sequence):
                self._waiting.remove(sequence)  # before another may preempt it, which puts it back

    def _who_gives_way(self, coming: Sequence, room: CacheRoom) -> list[Sequence]:
        """Of other owners, who hold more; nobody where that would not do."""
        running, gone = list(self._running), []
        while not self._is_enough(room, coming, alone=not running):
            other = victim(running, coming, self._claim if room.free > 0 else lambda _: 1)
            if other is None:
                return []
            running.remove(other)
            gone.append(other)
            room = room.after(self._claim(other))
        return gone

    def _is_enough(self, room: CacheRoom, coming: Sequence, *, alone: bool = False) -> bool:
        claimed = room.claimed + self._claim(coming)
        return room.free > 0 and self._fits(claimed, alone=alone or not self._running)

    def _fits(self, claimed: int, *, alone: bool) -> bool:
        if self._cache_tokens is None or alone:
            return True
        headroom = HEADROOM * (len(self._running) + 1)
        return claimed <= min(self._prompt_share * self._cache_tokens, self._cache_tokens - headroom)

    def _admit(self, sequence: Sequence) -> bool:
        if self._still_waits(sequence):
            return False
        scored = sequence.job.sampling.prompt_logprobs is not None  # what is found has no logits
        prefixes = [] if scored else list(self._slots.search(sequence))
        best = max(prefixes, key=lambda prefix: (prefix.length, prefix.is_free), default=None)
        if self._begins_to_wait(sequence, prefixes, best.length if best else 0):
            return False
        self._slots.take(sequence, best)
        self._running.append(sequence)
        self._rounds.record_turn(sequence.job.owner)
        if sequence.num_reused is None:  # not when it comes back
            sequence.num_reused = sequence.num_computed
            self.num_queried += len(sequence.tokens) if self._min_reuse else 0
            self.num_reused += sequence.num_computed
        return True

    def _begins_to_wait(self, sequence: Sequence, prefixes: list[Prefix], known: int) -> bool:
        """For a prefix that another is about to read: to copy it costs less than to read it beside the other."""
        coming = max(prefixes, key=lambda prefix: prefix.later, default=None)
        if coming is None or not coming.slot.holder or not sequence.wait_budget:
            return False
        if coming.later - known < self._min_reuse:
            return False
        sequence.wait_budget -= 1
        sequence.wait = PrefixWait(coming.slot.holder, coming.later, coming.slot.holder.num_computed)
        return True

    def _still_waits(self, sequence: Sequence) -> bool:
        """As long as the other goes on: its reading is not for ever, and standing still is forgiven a few times."""
        wait = sequence.wait
        if wait is None:
            return False
        other = wait.other
        if other.slot is not None and other.num_computed < wait.until:
            if other.num_computed > wait.seen:
                wait.seen = other.num_computed
                return True
            if sequence.wait_budget:
                sequence.wait_budget -= 1
                return True
        sequence.wait = None
        return False

    # --- the step ---

    def _share_budget(self) -> list[ScheduledSequence]:
        """Each owner has an equal part of what writers leave. Half of it is for the prompt that is first in order, so
        that short ones cannot hold up a long one for ever; the rest for the shortest first, which need not wait."""
        self._recover()
        writing = [sequence for sequence in self._running if sequence.num_pending == 1]
        reading = sorted((sequence for sequence in self._running if sequence.num_pending > 1), key=rank)
        scheduled = self._write(writing) if writing and not reading else [self._work(each, 1) for each in writing]
        left = self._max_tokens - len(scheduled)
        shares = prefill_shares(reading, left)
        scheduled += [self._work(sequence, shares[sequence]) for sequence in reading if shares[sequence]]
        self._step_tokens = sum(entry.num_tokens for entry in scheduled)
        return scheduled

    def _write(self, writing: list[Sequence]) -> list[ScheduledSequence]:
        """A token each, and guesses how they go on, as long as the step takes hardly longer for them."""
        room = (min(MAX_STEP_TOKENS, self._max_tokens) - len(writing)) // len(writing)
        if self._cache_tokens is not None:  # a guess may be the first in a new page
            room = min(room, _down((self._cache_tokens - self._num_claimed) // len(writing), self._page_size))
        most = min(MAX_DRAFT_TOKENS, room) if self._speculative else 0
        return [self._guess(sequence, min(most, sequence.num_left - 1)) for sequence in writing]

    def _guess(self, sequence: Sequence, most: int) -> ScheduledSequence:
        draft = sequence.proposer.draft(sequence.tokens, most)
        return self._work(sequence, 1 + len(draft), draft)

    def _work(self, sequence: Sequence, num_tokens: int, draft: tuple[int, ...] = ()) -> ScheduledSequence:
        assert sequence.slot is not None
        entry = ScheduledSequence(sequence, sequence.slot, num_tokens, draft)
        self._slots.advance(sequence, entry.end)
        return entry

    def _recover(self) -> None:
        if self._max_tokens < self._limit:
            self._steps_shrunk += 1
            if self._steps_shrunk % RECOVERY == 0:
                self._max_tokens = min(2 * self._max_tokens, self._limit)


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def _down(number: int, unit: int) -> int:
    return number // unit * unit
