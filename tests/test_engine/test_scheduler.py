"""The scheduler by properties: whatever comes, is cancelled, preempted or ends, in any order.

A fake memory keeps for each position not its token but a digest of all tokens up to it, as keys and values depend on
all of them; a step looks at everything that it would attend to.
"""

from array import array
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from services.engine.base import ANYBODY, Job
from services.engine.scheduling import fairness
from services.engine.scheduling.scheduler import RECOVERY, Batch, ScheduledSequence, Scheduler
from services.engine.scheduling.sequence import Sequence
from services.engine.scheduling.slots import common_prefix
from services.engine.scheduling.step import CacheChange, ClearSlot, CopySlot, SwapSlots

LENGTHS = st.integers(1, 30)
ANSWERS = st.integers(1, 6)
MAX_LENGTH = 36
POISON = -1


def sequence(
    prompt: int,
    answer: int = 1,
    name: str = "job",
    first: int = 0,
    priority: int = 0,
    owner: str = ANYBODY,
    *,
    flex: bool = False,
) -> Sequence:
    job = Job(name, tuple(range(first, first + prompt)), priority=priority, owner=owner, flex=flex)
    return Sequence(job, answer)


def following(tokens: list[int]) -> int:
    return hash(tuple(tokens)) % 3


class Memory:
    """What the slots hold: digests, nothing, or poison."""

    def __init__(self, num_slots: int, length: int = MAX_LENGTH) -> None:
        self.slots: list[list[int | None]] = [[None] * length for _ in range(num_slots)]

    @property
    def num_held(self) -> int:
        return sum(each is not None for slot in self.slots for each in slot)

    def apply(self, changes: list[CacheChange]) -> None:
        for change in changes:
            match change:
                case CopySlot(source, target, length):
                    self.slots[target][:length] = self.slots[source][:length]
                case SwapSlots(one, other, length):
                    kept = self.slots[one][:length]
                    self.slots[one][:length] = self.slots[other][:length]
                    self.slots[other][:length] = kept
                case ClearSlot(slot, start, end):
                    self.slots[slot][start:end] = [None] * (end - start)

    def compute(self, scheduled: list[ScheduledSequence]) -> None:
        for entry in scheduled:
            slot = self.slots[entry.slot]
            assert POISON not in slot  # masked or not, it would spread
            assert slot[: entry.start] == digests(entry, 0, entry.start)
            slot[entry.start : entry.end] = digests(entry, entry.start, entry.end)

    def poison(self, scheduled: list[ScheduledSequence]) -> None:
        for entry in scheduled:
            self.slots[entry.slot][: entry.end] = [POISON] * entry.end


def common(one: list[int], other: list[int]) -> int:
    """Tokens that they begin with in common."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def digest(tokens: list[int], is_long: bool = False) -> int:
    return abs(hash((is_long, *tokens)))


def digests(entry: ScheduledSequence, start: int, end: int) -> list[int]:
    """Of keys and values, which depend on all tokens before, and on the factors of LongRoPE."""
    tokens = [*entry.sequence.tokens, *entry.draft]
    return [digest(tokens[: i + 1], entry.sequence.is_long) for i in range(start, end)]


def compute(batch: Batch) -> None:
    """What a step does to its sequences, without a model."""
    for entry in batch.scheduled:
        drawn = entry.samples
        entry.sequence.num_computed += entry.num_tokens
        if drawn:
            entry.sequence.tokens.append(following(entry.sequence.tokens))
            entry.sequence.finished = entry.sequence.num_sampled >= entry.sequence.max_tokens


def steps(scheduler: Scheduler, memory: Memory | None = None) -> Iterator[list[ScheduledSequence]]:
    while (batch := scheduler.schedule()).scheduled:
        if memory:
            memory.apply(batch.changes)
            memory.compute(batch.scheduled)
        yield batch.scheduled
        compute(batch)


def rank(each: Sequence) -> tuple[bool, int, int]:
    return each.job.flex, each.job.priority, each.arrival


class Service(RuleBasedStateMachine):
    @initialize(
        slots=st.integers(1, 5),
        budget=st.integers(1, 40),
        cache_tokens=st.none() | st.integers(MAX_LENGTH, 100),
        min_reuse=st.sampled_from([None, 1, 3]),
        owners=st.sampled_from([(ANYBODY,), ("alpha", "beta")]),
        slices=st.sampled_from([(1, 2), (2, 4), (fairness.SLICE, fairness.QUANTUM)]),
    )
    def start(
        self,
        slots: int,
        budget: int,
        cache_tokens: int | None,
        min_reuse: int | None,
        owners: tuple[str, ...],
        slices: tuple[int, int],
    ) -> None:
        self.owners = owners
        self.ran: set[Sequence] = set()
        self.usual = fairness.SLICE, fairness.QUANTUM
        fairness.SLICE, fairness.QUANTUM = slices
        self.num_slots = slots
        self.budget = max(budget, slots)
        self.cache_tokens = cache_tokens
        self.scheduler = Scheduler(slots, budget, cache_tokens=cache_tokens, min_reuse=min_reuse)
        self.memory = Memory(slots)
        self.sequences: list[Sequence] = []
        self.batch = Batch([], [])

    @rule(
        prompt=LENGTHS,
        answer=ANSWERS,
        family=st.integers(0, 1),
        priority=st.sampled_from([0, 0, 0, 1]),
        owner=st.integers(0, 1),
        flex=st.sampled_from([False, False, True]),
    )
    def add(self, prompt: int, answer: int, family: int, priority: int, owner: int, flex: bool) -> None:
        whose = self.owners[owner % len(self.owners)]
        self.sequences.append(sequence(prompt, answer, first=10 * family, priority=priority, owner=whose, flex=flex))
        self.scheduler.add(self.sequences[-1])

    @precondition(lambda self: any(each.finished for each in self.sequences))
    @rule(data=st.data(), said=st.lists(st.integers(0, 2), min_size=1, max_size=4))
    def go_on(self, data: st.DataObject, said: list[int]) -> None:
        """A conversation grows by a turn."""
        before = data.draw(st.sampled_from([each for each in self.sequences if each.finished]))
        tokens = (*before.tokens, *said)[: MAX_LENGTH - 2]
        self.sequences.append(Sequence(Job("job", tokens, owner=before.job.owner), 2))
        self.scheduler.add(self.sequences[-1])

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.sequences:
            data.draw(st.sampled_from(self.sequences)).cancelled = True

    @rule()
    def step(self) -> None:
        self._begin()
        self.memory.compute(self.batch.scheduled)
        compute(self.batch)

    @rule(data=st.data())
    def one_fails(self, data: st.DataObject) -> None:
        self._begin()
        self.memory.compute(self.batch.scheduled)
        failing = data.draw(st.sampled_from(self.batch.scheduled)) if self.batch.scheduled else None
        if failing:
            self.memory.poison([failing])
        compute(self.batch)
        if failing:
            self.scheduler.fail(failing.sequence)

    @rule()
    def no_memory_for_a_step(self) -> None:
        self._begin()
        running = self.scheduler.num_running
        size = sum(entry.num_tokens for entry in self.batch.scheduled)
        assert self.scheduler.shrink() is (size > 1)
        assert self.scheduler.num_running == min(running, max(size // 2, size < 2 and running))
        self.budget = size // 2 if size > 1 else self.budget

    @rule()
    def drop_running(self) -> None:
        """A step fails, whatever it has written."""
        self._begin()
        self.memory.poison(self.batch.scheduled)
        waiting = self.scheduler.num_waiting
        dropped = self.scheduler.drop_running()

        assert all(each.finished and each.slot is None for each in dropped)
        assert (self.scheduler.num_running, self.scheduler.num_waiting) == (0, waiting)

    @rule()
    def drop_all(self) -> None:
        open_before = [each for each in self.sequences if not each.is_over]
        dropped = self.scheduler.drop_all()

        assert all(each in dropped and each.finished for each in open_before)
        assert self.scheduler.is_idle

    def _begin(self) -> None:
        before = [each for each in self.sequences if each.slot is not None]
        writing = [each for each in before if each.num_pending == 1 and not each.is_over]
        self.batch = self.scheduler.schedule()
        scheduled = self.batch.scheduled

        assert sum(entry.num_tokens for entry in scheduled) <= self.budget or len(scheduled) <= self.num_slots
        assert all(1 <= entry.num_tokens <= entry.sequence.num_pending for entry in scheduled)
        assert not any(entry.sequence.is_over for entry in scheduled)
        assert len({entry.slot for entry in scheduled}) == len(scheduled)
        assert all(entry.slot == entry.sequence.slot for entry in scheduled)
        assert scheduled or self.scheduler.is_idle  # never stuck
        scheduled = [entry.sequence for entry in scheduled]
        # nobody who reads holds up who writes
        assert all(each in scheduled or each.slot is None or each.job.flex for each in writing)
        admitted = [each for each in self.sequences if each.slot is not None and each not in before]
        waiting = [each for each in self.sequences if each.slot is None and not each.is_over and not each.wait]
        if len(self.owners) > 1:  # who has given way to another owner in this step comes after those admitted in it
            waiting = [each for each in waiting if each not in before]
        pairs = [(each, other) for each in admitted for other in waiting if each.job.owner == other.job.owner]
        assert all(rank(each) < rank(other) for each, other in pairs)
        for each in admitted:
            self._has_found_only_its_owners(each)

        self.memory.apply(self.batch.changes)

    def _has_found_only_its_owners(self, admitted: Sequence) -> None:
        """Or its own, if it ran before."""
        own = [each for each in self.sequences if each.job.owner == admitted.job.owner and each is not admitted]
        known = max((common(admitted.tokens, each.tokens) for each in own), default=0)
        assert admitted.num_found <= known or admitted in self.ran
        self.ran.add(admitted)

    @invariant()
    def every_slot_is_free_or_held_once(self) -> None:
        held = [each.slot for each in self.sequences if each.slot is not None]
        assert len(set(held)) == len(held) == self.scheduler.num_running
        assert all(0 <= slot < self.num_slots for slot in held)

    @invariant()
    def the_memory_is_bounded(self) -> None:
        assert self.cache_tokens is None or self.memory.num_held <= self.cache_tokens

    @invariant()
    def what_was_said_stays_said(self) -> None:
        for each in self.sequences:
            said = len(each.job.prompt)
            assert all(each.tokens[i] == following(each.tokens[:i]) for i in range(said, len(each.tokens)))

    def teardown(self) -> None:
        """Everything finishes, and every slot comes home."""
        if not hasattr(self, "scheduler"):
            return
        longest = sum(len(each.job.prompt) + each.max_tokens for each in self.sequences)
        if len(self.owners) > 1:  # each token may cost reading what is before it once more
            longest *= MAX_LENGTH
        assert sum(1 for _ in steps(self.scheduler, self.memory)) <= 2 * longest
        fairness.SLICE, fairness.QUANTUM = self.usual
        assert all(each.cancelled or each.finished for each in self.sequences)
        self.scheduler.check()
        assert self.scheduler.num_cached == 0


TestService = Service.TestCase
TestService.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


# --- the budget ---


def test_a_short_prompt_does_not_wait_behind_a_long_one() -> None:
    scheduler = Scheduler(num_slots=4, max_tokens=64)
    scheduler.add(sequence(8000))
    compute(scheduler.schedule())
    short = sequence(40, first=9000)
    scheduler.add(short)

    compute(scheduler.schedule())
    compute(scheduler.schedule())

    assert short.num_sampled == 1


def test_a_long_prompt_is_not_held_up_by_any_number_of_short_ones() -> None:
    scheduler = Scheduler(num_slots=8, max_tokens=64)
    long = sequence(1000)
    scheduler.add(long)
    for step in range(40):
        scheduler.add(sequence(64, first=2000 + 100 * step))
        compute(scheduler.schedule())

    assert long.num_sampled >= 1


@given(prompts=st.lists(LENGTHS, min_size=2, max_size=8), budget=st.integers(2, 16))
@settings(deadline=None)
def test_the_budget_is_used_up(prompts: list[int], budget: int) -> None:
    scheduler = Scheduler(num_slots=8, max_tokens=budget, min_reuse=None)
    for length in prompts:
        scheduler.add(sequence(length))

    batch = scheduler.schedule()

    assert sum(entry.num_tokens for entry in batch.scheduled) == min(sum(prompts), max(budget, 8))


def test_low_slots_are_taken_first_so_that_the_cache_stays_dense() -> None:
    scheduler = Scheduler(num_slots=8, max_tokens=64)
    sequences = [sequence(2, answer=9) for _ in range(3)]
    for each in sequences:
        scheduler.add(each)
    compute(scheduler.schedule())
    sequences[0].cancelled = True
    scheduler.schedule()

    latecomer = sequence(2)
    scheduler.add(latecomer)
    scheduler.schedule()

    assert latecomer.slot == 0


def test_a_prompt_is_read_in_chunks_and_drawn_from_only_at_its_end() -> None:
    scheduler = Scheduler(num_slots=1, max_tokens=4)
    scheduler.add(sequence(10))

    scheduled = []
    while batch := scheduler.schedule().scheduled:
        scheduled += [(entry.start, entry.end, entry.samples) for entry in batch]
        compute(Batch([], batch))

    assert scheduled == [(0, 4, False), (4, 8, False), (8, 10, True)]


def test_a_small_budget_still_lets_every_running_sequence_write() -> None:
    scheduler = Scheduler(num_slots=4, max_tokens=1)
    for _ in range(4):
        scheduler.add(sequence(1, answer=3))

    assert [len(scheduled) for scheduled in steps(scheduler)] == [4, 4, 4]


def test_a_budget_that_was_halved_comes_back() -> None:
    scheduler = Scheduler(num_slots=1, max_tokens=64, cache_tokens=None)
    scheduler.add(sequence(10_000))
    scheduler.schedule()
    assert scheduler.shrink()
    sizes = [scheduler.schedule().scheduled[0].num_tokens for _ in range(RECOVERY + 1)]

    assert (sizes[0], sizes[-1]) == (32, 64)


# --- priority and preemption ---


def test_lower_numbers_come_first() -> None:
    scheduler = Scheduler(num_slots=1, max_tokens=64)
    jobs = [sequence(2, name=name, priority=priority) for name, priority in [("b", 0), ("c", 1), ("a", -1)]]
    for each in jobs:
        scheduler.add(each)

    assert [entry.sequence.job.id for scheduled in steps(scheduler) for entry in scheduled] == ["a", "b", "c"]


def test_the_least_urgent_and_latest_gives_way_and_comes_back_with_what_it_said() -> None:
    scheduler = Scheduler(num_slots=3, max_tokens=200, cache_tokens=170, min_reuse=None)
    memory = Memory(3, length=200)
    first, urgent, last = (sequence(20, answer=60, first=100 * i, priority=-(i == 1)) for i in range(3))
    for each in (first, urgent, last):
        scheduler.add(each)
    order = []
    for scheduled in steps(scheduler, memory):
        order.append({id(entry.sequence) for entry in scheduled})

    assert scheduler.num_preemptions == 1
    assert all(id(each) in step for step in order[:60] for each in (first, urgent))
    assert all(each.num_sampled == 60 for each in (first, urgent, last))


@pytest.mark.usefixtures("no_headroom")
def test_a_sequence_admitted_and_preempted_in_one_step_waits_once() -> None:
    """The second owner's last prompt takes the memory of the first owner's, which was admitted just before it."""
    scheduler = Scheduler(8, 64, cache_tokens=80, min_reuse=None)
    scheduler.add(sequence(40, answer=2, owner="beta"))
    compute(scheduler.schedule())
    for prompt, owner in ((4, "alpha"), (21, "beta"), (20, "alpha")):
        scheduler.add(sequence(prompt, answer=9, owner=owner))

    batch = scheduler.schedule()
    assert scheduler.num_preemptions == 1
    assert {len(entry.sequence.job.prompt) for entry in batch.scheduled} == {40, 4, 20}
    compute(batch)
    for scheduled in steps(scheduler):
        assert len({entry.sequence for entry in scheduled}) == len(scheduled)


def test_a_prompt_is_let_in_when_there_is_room_for_it_beside_the_others() -> None:
    scheduler = Scheduler(num_slots=3, max_tokens=500, cache_tokens=200)
    for i in range(3):
        scheduler.add(sequence(80, answer=2, first=100 * i))

    assert [len(scheduled) for scheduled in steps(scheduler)] == [2, 2, 1, 1]
    assert scheduler.num_preemptions == 0


@pytest.mark.usefixtures("no_headroom")
def test_who_has_not_begun_to_read_needs_nothing_of_what_was_in_its_slot() -> None:
    scheduler = Scheduler(num_slots=3, max_tokens=12, cache_tokens=58)
    memory = Memory(3, length=60)
    for wave in [(50,), (40, 6, 10)]:
        for prompt in wave:
            scheduler.add(sequence(prompt, first=100 * prompt))
        for _ in steps(scheduler, memory):
            assert memory.num_held <= 58


# --- reuse ---


def run(scheduler: Scheduler, *sequences: Sequence) -> list[CacheChange]:
    """To the end; the changes of the cache on the way."""
    for each in sequences:
        scheduler.add(each)
    changes = []
    while (batch := scheduler.schedule()).scheduled:
        changes += batch.changes
        compute(batch)
    return changes


def again(before: Sequence, *said: int) -> Sequence:
    return Sequence(Job("job", (*before.tokens, *said)), 1)


def test_a_conversation_goes_on_in_its_slot() -> None:
    scheduler = Scheduler(num_slots=4, max_tokens=64)
    before = sequence(20, answer=10)
    run(scheduler, before)
    after = again(before, 7, 8, 9)

    assert run(scheduler, after) == []
    assert after.num_reused == 29  # the last one it said was never computed
    assert (scheduler.num_queried, scheduler.num_reused) == (20 + 33, 29)


def test_another_conversation_gets_a_copy_of_what_they_share() -> None:
    scheduler = Scheduler(num_slots=4, max_tokens=64)
    one = sequence(20, answer=20)
    run(scheduler, one)
    other = Sequence(Job("job", (*range(20), 50, 51)), 1)

    assert run(scheduler, other) == [CopySlot(source=0, target=1, length=20)]
    assert other.num_reused == 20
    assert run(scheduler, again(one, 7)) == []  # which is all there still


def test_the_whole_prompt_is_never_reused() -> None:
    scheduler = Scheduler(num_slots=2, max_tokens=64)
    run(scheduler, sequence(20))
    same = sequence(20)
    run(scheduler, same)

    assert same.num_reused == 19
    assert same.num_sampled == 1


def test_a_few_tokens_are_not_worth_it() -> None:
    scheduler = Scheduler(num_slots=2, max_tokens=64)
    run(scheduler, sequence(15))
    other = sequence(15)
    run(scheduler, other)

    assert other.num_reused == 0


def test_the_least_recently_used_slot_is_lost_first() -> None:
    scheduler = Scheduler(num_slots=2, max_tokens=64)
    old, new = sequence(20, first=0), sequence(20, first=100)
    run(scheduler, old)
    run(scheduler, new)
    run(scheduler, refreshed := again(old, 5))
    run(scheduler, sequence(20, first=200))  # takes the place of new
    run(scheduler, again(refreshed, 6), lost := again(new, 5))

    assert refreshed.num_reused == 20
    assert lost.num_reused == 0


def test_who_runs_is_copied_from_too() -> None:
    scheduler = Scheduler(num_slots=2, max_tokens=64)
    scheduler.add(sequence(30, answer=9))
    compute(scheduler.schedule())
    scheduler.add(other := sequence(40))

    assert scheduler.schedule().changes == [CopySlot(source=0, target=1, length=30)]
    assert other.num_computed == 30


def test_many_with_one_beginning_read_it_once() -> None:
    scheduler = Scheduler(num_slots=8, max_tokens=64)
    crowd = [Sequence(Job("job", (*range(200), 300 + i, 301 + i)), 2) for i in range(8)]
    for each in crowd:
        scheduler.add(each)
    counts = [sum(entry.num_tokens for entry in scheduled) for scheduled in steps(scheduler, Memory(8, length=300))]

    assert [each.num_reused for each in crowd] == [0] + [200] * 7
    assert sum(counts) == 202 + 7 * 2 + 8


def test_nobody_waits_for_who_stands_still_or_has_left() -> None:
    scheduler = Scheduler(num_slots=3, max_tokens=64)
    scheduler.add(reads := sequence(200))
    scheduler.schedule()
    scheduler.add(waits := sequence(201))
    for _ in range(20):  # steps that come to nothing
        scheduler.schedule()
    assert waits.slot is not None

    scheduler.add(later := sequence(202))
    scheduler.schedule()
    reads.cancelled = waits.cancelled = True
    scheduler.schedule()
    assert later.slot is not None


def test_who_waits_for_a_prefix_keeps_a_slot() -> None:
    scheduler = Scheduler(num_slots=2, max_tokens=64)
    scheduler.add(sequence(100))
    scheduler.schedule()
    scheduler.add(waits := sequence(101))
    scheduler.add(other := sequence(5, first=500))
    scheduler.schedule()

    assert waits.slot is other.slot is None


def test_scattered_slots_are_moved_together() -> None:
    """As a step works on all slots between the lowest and the highest."""
    scheduler = Scheduler(num_slots=16, max_tokens=512)
    crowd = [sequence(20, answer=9 if i in (0, 15) else 1, first=100 * i) for i in range(16)]
    for each in crowd:
        scheduler.add(each)
    memory = Memory(16, length=64)
    slots = [sorted(entry.slot for entry in scheduled) for scheduled in steps(scheduler, memory)]

    assert slots[0] == list(range(16))
    assert all(high - low < 4 for low, high in slots[1:])
    run(scheduler, kept := again(crowd[7], 1))
    assert kept.num_reused == 20  # what gave way is still known


@given(st.lists(st.integers(0, 1), max_size=40), st.lists(st.integers(0, 1), max_size=40), st.integers(1, 5))
def test_the_common_prefix(one: list[int], other: list[int], least: int) -> None:
    equal = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))

    assert common_prefix(array("i", one), array("i", other), least) == (equal if equal >= least else 0)


# --- the rest ---


@pytest.mark.parametrize("reads", range(1, 5))
def test_cancelling_in_the_middle_of_scheduling_loses_no_slot(reads: int) -> None:
    """The flag is set by another thread: it may change between any two looks at it."""

    class CancelledBetweenTwoLooks(Sequence):
        looks = 0

        @property
        def is_over(self) -> bool:
            type(self).looks += 1
            return self.looks > reads

    scheduler = Scheduler(num_slots=1, max_tokens=8)
    scheduler.add(CancelledBetweenTwoLooks(Job("gone", (1, 2)), 9))
    for _ in range(reads + 1):
        scheduler.schedule()
    latecomer = sequence(2)
    scheduler.add(latecomer)
    scheduler.schedule()

    assert latecomer.slot == 0


def test_the_numbers_that_metrics_read() -> None:
    scheduler = Scheduler(num_slots=1, max_tokens=4)
    scheduler.add(sequence(6))
    scheduler.add(sequence(1))
    compute(scheduler.schedule())

    assert (scheduler.num_running, scheduler.num_waiting, scheduler.num_cached) == (1, 1, 4)
    assert not scheduler.is_idle


def test_beginnings_are_shared_by_whole_blocks() -> None:
    scheduler = Scheduler(num_slots=2, max_tokens=64, block_size=8)
    scheduler.add(first := sequence(30))
    compute(scheduler.schedule())
    first.finished = True
    scheduler.add(second := sequence(30))
    scheduler.schedule()

    assert second.num_reused == 24


@pytest.mark.usefixtures("no_headroom")
@pytest.mark.parametrize(("block_size", "num_running"), [(1, 3), (8, 1), (15, 2)])
def test_the_cache_is_counted_in_blocks(block_size: int, num_running: int) -> None:
    scheduler = Scheduler(num_slots=8, max_tokens=64, cache_tokens=30, min_reuse=None, block_size=block_size)
    for _ in range(4):
        scheduler.add(sequence(10))
    scheduler.schedule()

    assert scheduler.num_running == num_running


@pytest.mark.usefixtures("no_headroom")
@pytest.mark.parametrize(("share", "num_running"), [(1, 8), (0.5, 5), (0.01, 1)])
def test_prompts_leave_room_for_answers(share: float, num_running: int) -> None:
    scheduler = Scheduler(num_slots=8, max_tokens=100, cache_tokens=100, min_reuse=None, prompt_share=share)
    for _ in range(8):
        scheduler.add(sequence(10))
    scheduler.schedule()

    assert scheduler.num_running == num_running
