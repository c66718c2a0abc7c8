"""The scheduler: which sequences run in the next step, with how many tokens each. No tensors, no threads, no clock."""

from bisect import insort
from collections import Counter
from dataclasses import dataclass
from itertools import count
from math import inf

from services.engine.scheduling import flex
from services.engine.scheduling.fairness import RoundRobin, rank
from services.engine.scheduling.ngram_proposer import MAX_DRAFT_TOKENS, MAX_STEP_TOKENS
from services.engine.scheduling.sequence import PrefixWait, Sequence
from services.engine.scheduling.slots import MIN_REUSE, Prefix, Slots
from services.engine.scheduling.snapshots import SnapshotPrefix
from services.engine.scheduling.step import CacheChange, SaveSnapshot, SnapshotRoom, StepRow

HEADROOM = 16  # tokens of the cache that an admission leaves for each running sequence to grow
RECOVERY = 256  # steps after which a token budget that was halved for lack of memory is doubled


@dataclass(frozen=True, slots=True)
class ScheduledSequence:
    """The next `num_tokens` tokens of a sequence: prefill and decode differ in this number only.

    The last of them may be draft tokens, of which those are kept that the model would have sampled.
    """

    sequence: Sequence
    slot: int
    num_tokens: int
    draft: tuple[int, ...] = ()
    saves: tuple[SaveSnapshot, ...] = ()

    @property
    def start(self) -> int:
        return self.sequence.num_computed

    @property
    def end(self) -> int:
        return self.sequence.num_computed + self.num_tokens

    @property
    def samples(self) -> bool:
        """Whether the step computes the last known token, so that a new one is sampled."""
        return self.end - len(self.draft) == len(self.sequence.tokens)

    @property
    def scores_prompt(self) -> bool:
        """Whether the logprobs of the prompt's tokens are computed."""
        return self.sequence.is_scored and self.start < len(self.sequence.job.prompt) - 1

    @property
    def num_logits(self) -> int:
        if self.scores_prompt:
            return self.num_tokens
        return 1 + len(self.draft) if self.samples else 0

    def row(self) -> StepRow:
        sequence, start = self.sequence, self.sequence.num_computed
        tokens = (*sequence.tokens[start : start + self.num_tokens], *self.draft)
        return StepRow(
            sequence.job.id,
            self.slot,
            start,
            self.num_tokens,
            self.num_logits,
            tokens,
            sequence.images,
            sequence.is_long,
            sequence.adapter,
            self.saves,
        )


@dataclass(frozen=True, slots=True)
class CacheRoom:
    """What is left for sequences to be admitted."""

    free: int  # slots
    reserved: int  # tokens of the cache

    def after(self, reserved: int) -> "CacheRoom":
        """Once a sequence was preempted."""
        return CacheRoom(self.free + 1, self.reserved - reserved)


@dataclass(frozen=True, slots=True)
class Batch:
    """One step: first the changes to the cache, in their order, then all sequences at once."""

    changes: list[CacheChange]
    scheduled: list[ScheduledSequence]


class Scheduler:
    """By priority, then first come, first served, and round-robin between owners; running sequences before waiting
    ones, under one token budget a step; flex sequences after all others.

    `cache_tokens`: what all slots together may hold, counted in blocks, and in whole pages of `page_size` tokens; None:
    each may be full. Sequences are admitted up to `prompt_share` of it; the rest is for running ones to grow.

    `short_length`: tokens of a sequence from which on it is computed otherwise, and again from its first token.

    `snapshots`: their room, for prefixes where the content of a slot cannot serve another sequence.
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
        short_length: int | None = None,
        snapshots: SnapshotRoom | None = None,
    ) -> None:
        self._limit = max(max_tokens, num_slots)  # every running sequence can decode in each step
        self._max_tokens = self._limit
        self._cache_tokens = cache_tokens and _down(_down(cache_tokens, block_size), page_size)
        self._min_reuse = min_reuse or 0
        self._speculative = speculative
        self._block_size = block_size
        self._page_size = page_size
        self._prompt_share = prompt_share
        self._short_length = short_length
        self.slots = Slots(num_slots, min_reuse, block_size, page_size, snapshots)
        self._waiting: list[Sequence] = []  # in their order
        self._running: list[Sequence] = []
        self._arrivals = count()
        self._round_robin = RoundRobin()
        self._pause = flex.Pause()
        self._steps_shrunk = 0
        self._step_tokens = 0
        self.num_preemptions = 0
        self.num_queried = 0  # prompt tokens that were looked up in the cache
        self.num_reused = 0  # and found
        self.num_drafted = 0  # draft tokens
        self.num_accepted = 0  # and accepted

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    @property
    def num_waiting_flex(self) -> int:
        return sum(each.job.flex for each in self._waiting)

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
        """The next step: one token for each decoding sequence, then chunks of prompts from the rest of the budget."""
        self._drop_finished()
        self._preempt_outgrown()
        self._preempt_until_it_fits()
        self._admit_waiting()
        self.slots.compact()
        scheduled = self._share_budget()
        if self._cache_tokens is not None:
            self.slots.evict(self.slots.num_written - self._cache_tokens)
        return Batch(self.slots.changes(), scheduled)

    def record_acceptance(self, entry: ScheduledSequence, num_accepted: int) -> None:
        """Of the tokens of a draft."""
        self.num_drafted += len(entry.draft)
        self.num_accepted += num_accepted
        entry.sequence.proposer.record_acceptance(num_accepted, len(entry.sequence.tokens))

    def fail(self, sequence: Sequence) -> None:
        """Ends a sequence and clears its slot, whose content is invalid."""
        sequence.finished = True
        if sequence.slot is not None:
            self.slots.invalidate(sequence)
            self._running.remove(sequence)

    def drop_running(self) -> list[Sequence]:
        """Ends all running sequences after a failed step, which leaves the content of the cache unknown."""
        dropped, self._running = self._running, []
        for sequence in dropped:
            sequence.finished = True
        self.slots.invalidate_all()
        return dropped

    def drop_all(self) -> list[Sequence]:
        """Ends all sequences."""
        dropped = [*self.drop_running(), *self._waiting]
        for sequence in dropped:
            sequence.finished = True
        self._waiting = []
        return dropped

    def shrink(self) -> bool:
        """Drops the snapshots after a step without memory, or else halves the token budget; False: the step had one
        token."""
        if self.slots.snapshots and self.slots.snapshots.drop_all():
            return True
        if self._step_tokens <= 1:
            return False
        self._max_tokens = self._step_tokens // 2
        self._steps_shrunk = 0
        while len(self._running) > self._max_tokens:
            self.preempt()
        return True

    def check(self) -> None:
        """When idle, every slot is free."""
        assert self.is_idle
        assert self.slots.num_free == len(self.slots)

    # --- finish and preempt ---

    def _drop_finished(self) -> None:
        for sequence in self._running:
            if sequence.is_over:
                self.slots.release(sequence)
            else:
                self.slots.advance(sequence, sequence.num_computed)
        self._running = [sequence for sequence in self._running if sequence.slot is not None]
        self._waiting = [sequence for sequence in self._waiting if not sequence.is_over]

    def _preempt_outgrown(self) -> None:
        for sequence in [each for each in self._running if self._is_outgrown(each)]:
            self.preempt(sequence)

    def _is_outgrown(self, sequence: Sequence) -> bool:
        """Whether what is cached of it was computed as of a shorter sequence."""
        return self._short_left(sequence) < 0 and not sequence.is_long

    def _short_left(self, sequence: Sequence) -> float:
        """Tokens until it is computed otherwise."""
        return inf if self._short_length is None or sequence.is_long else self._short_length - len(sequence.tokens)

    def _preempt_until_it_fits(self) -> None:
        """One sequence alone always fits: it would not have been admitted otherwise."""
        while self._cache_tokens is not None and self._num_reserved > self._cache_tokens and len(self._running) > 1:
            self.preempt()

    def preempt(self, sequence: Sequence | None = None) -> None:
        """Back to the queue with its tokens, which are computed again unless its slot still holds them."""
        sequence = sequence or flex.last_in_order(self._running, self._reserved)
        self._running.remove(sequence)
        self.slots.release(sequence)
        sequence.num_computed = 0
        self.num_preemptions += 1
        insort(self._waiting, sequence, key=rank)

    # --- admit ---

    @property
    def _num_reserved(self) -> int:
        """Tokens of the cache once every prompt is computed."""
        return sum(map(self._reserved, self._running))

    def _reserved(self, sequence: Sequence) -> int:
        return _up(_up(len(sequence.tokens), self._block_size), self._page_size)

    def _admit_waiting(self) -> None:
        """Round-robin. A sequence that waits for a prefix keeps its place and a slot, which no later one takes."""
        free = min(self.slots.num_free, self._max_tokens - len(self._running))
        reserved = self._num_reserved
        held = Counter(each.job.owner for each in self._running)
        for sequence in flex.in_turn(self._round_robin, self._waiting, held):
            room = CacheRoom(free, reserved)
            for other in self._victims_for(sequence, room):
                held[other.job.owner] -= 1
                room = room.after(self._reserved(other))
                self.preempt(other)
            if not self._has_room(room, sequence):
                break
            free, reserved = room.free - 1, room.reserved + self._reserved(sequence)
            if self._admit(sequence):
                self._waiting.remove(sequence)  # before another may preempt it, which puts it back

    def _victims_for(self, coming: Sequence, room: CacheRoom) -> list[Sequence]:
        """Sequences that give way to this one; none where that would not suffice."""
        running, victims = list(self._running), []
        while not self._has_room(room, coming, alone=not running):
            other = flex.yielding(running, coming, self._reserved if room.free > 0 else lambda _: 1)
            if other is None:
                return []
            running.remove(other)
            victims.append(other)
            room = room.after(self._reserved(other))
        return victims

    def _has_room(self, room: CacheRoom, coming: Sequence, *, alone: bool = False) -> bool:
        reserved = room.reserved + self._reserved(coming)
        return room.free > 0 and self._fits(reserved, alone=alone or not self._running)

    def _fits(self, reserved: int, *, alone: bool) -> bool:
        if self._cache_tokens is None or alone:
            return True
        headroom = HEADROOM * (len(self._running) + 1)
        return reserved <= min(self._prompt_share * self._cache_tokens, self._cache_tokens - headroom)

    def _admit(self, sequence: Sequence) -> bool:
        if self._keeps_waiting(sequence):
            return False
        if self._is_outgrown(sequence):
            sequence.lengthen()
        prefixes = [] if sequence.is_scored else list(self.slots.find_prefixes(sequence))
        best = max(prefixes, key=lambda prefix: (prefix.length, prefix.is_free), default=None)
        if self._starts_waiting(sequence, prefixes, best.length if best else 0):
            return False
        self.slots.allocate(sequence, best)
        self._running.append(sequence)
        self._round_robin.record_turn(sequence.job.owner)
        if sequence.num_reused is None:  # not after a preemption
            sequence.num_reused = sequence.num_computed
            self.num_queried += len(sequence.tokens) if self.slots.reuses else 0
            self.num_reused += sequence.num_computed
        return True

    def _starts_waiting(self, sequence: Sequence, prefixes: list[Prefix | SnapshotPrefix], known: int) -> bool:
        """For a prefix that another sequence is computing: copying it later costs less than computing it twice."""
        coming = max(prefixes, key=lambda prefix: prefix.later, default=None)
        if coming is None or not coming.holder or not sequence.wait_budget:
            return False
        if coming.holder.job.flex and not sequence.job.flex:  # which pauses meanwhile
            return False
        if coming.later - known < self._min_reuse:
            return False
        sequence.wait_budget -= 1
        sequence.wait = PrefixWait(coming.holder, coming.later, coming.holder.num_computed)
        return True

    def _keeps_waiting(self, sequence: Sequence) -> bool:
        """As long as the other makes progress; without it, as often as the wait budget allows."""
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

    # --- token budget ---

    def _share_budget(self) -> list[ScheduledSequence]:
        """Each owner gets an equal part of what the decodes leave. Half of it is for the prompt that is first in order,
        so that short prompts cannot delay a long one for ever; the rest is for the shortest prompts first."""
        self._recover()
        running = self._pause.going_on(self._running)
        decoding = [sequence for sequence in running if sequence.num_pending == 1]
        prefilling = sorted((sequence for sequence in running if sequence.num_pending > 1), key=rank)
        if prefilling:  # no drafts beside a prompt
            scheduled = [self._schedule(each, 1) for each in decoding]
        else:
            scheduled = self._schedule_decodes(decoding) if decoding else []
        left = self._max_tokens - len(scheduled)
        shares = flex.shares(prefilling, left, self._max_tokens)
        scheduled += [self._schedule(sequence, shares[sequence]) for sequence in prefilling if shares[sequence]]
        self._step_tokens = sum(entry.num_tokens for entry in scheduled)
        return scheduled

    def _schedule_decodes(self, decoding: list[Sequence]) -> list[ScheduledSequence]:
        """A token each, and draft tokens as long as the step takes hardly longer for them."""
        room = (min(MAX_STEP_TOKENS, self._max_tokens) - len(decoding)) // len(decoding)
        if self._cache_tokens is not None:  # a draft token may need a new page
            room = min(room, _down((self._cache_tokens - self._num_reserved) // len(decoding), self._page_size))
        most = min(MAX_DRAFT_TOKENS, room) if self._speculative else 0
        return [
            self._schedule_draft(sequence, int(min(most, sequence.num_left - 1, self._short_left(sequence))))
            for sequence in decoding
        ]

    def _schedule_draft(self, sequence: Sequence, most: int) -> ScheduledSequence:
        draft = sequence.proposer.draft(sequence.tokens, most)
        return self._schedule(sequence, 1 + len(draft), draft)

    def _schedule(self, sequence: Sequence, num_tokens: int, draft: tuple[int, ...] = ()) -> ScheduledSequence:
        assert sequence.slot is not None
        end = sequence.num_computed + num_tokens
        self.slots.advance(sequence, end)
        return ScheduledSequence(sequence, sequence.slot, num_tokens, draft, self.slots.saves(sequence, end))

    def _recover(self) -> None:
        if self._max_tokens < self._limit:
            self._steps_shrunk += 1
            if self._steps_shrunk % RECOVERY == 0:
                self._max_tokens = min(2 * self._max_tokens, self._limit)


def _up(number: int, unit: int) -> int:
    return -(-number // unit) * unit


def _down(number: int, unit: int) -> int:
    return number // unit * unit
