"""The scheduler by properties: whatever comes, is cancelled or ends, in any order."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from services.engine.base import Job
from services.engine.scheduler import Scheduler, Work
from services.engine.sequence import Sequence

LENGTHS = st.integers(1, 30)
ANSWERS = st.integers(1, 6)


def sequence(prompt: int, answer: int = 1, name: str = "job") -> Sequence:
    return Sequence(Job(name, tuple(range(prompt))), answer)


def compute(batch: list[Work]) -> None:
    """What a step does to its sequences, without a model."""
    for work in batch:
        drawn = work.samples
        work.sequence.num_computed += work.num_tokens
        if drawn:
            work.sequence.tokens.append(0)
            work.sequence.finished = work.sequence.num_sampled >= work.sequence.max_tokens


def steps(scheduler: Scheduler) -> Iterator[list[Work]]:
    while batch := scheduler.schedule():
        yield batch
        compute(batch)


class Service(RuleBasedStateMachine):
    @initialize(slots=st.integers(1, 5), budget=st.integers(1, 40))
    def start(self, slots: int, budget: int) -> None:
        self.slots = slots
        self.budget = max(budget, slots)
        self.scheduler = Scheduler(slots, budget)
        self.sequences: list[Sequence] = []
        self.held: dict[int, Sequence] = {}  # by slot, as the last step had it
        self.started: list[Sequence] = []

    @rule(prompt=LENGTHS, answer=ANSWERS)
    def add(self, prompt: int, answer: int) -> None:
        self.sequences.append(sequence(prompt, answer))
        self.scheduler.add(self.sequences[-1])

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        if self.sequences:
            data.draw(st.sampled_from(self.sequences)).cancelled = True

    @rule()
    def step(self) -> None:
        writing = [each for each in self.held.values() if each.num_pending == 1 and not each.is_over]
        batch = self.scheduler.schedule()

        assert sum(work.num_tokens for work in batch) <= self.budget
        assert all(1 <= work.num_tokens <= work.sequence.num_pending for work in batch)
        assert not any(work.sequence.is_over for work in batch)
        assert len({work.slot for work in batch}) == len(batch)
        scheduled = [work.sequence for work in batch]
        assert all(each in scheduled for each in writing)  # nobody who writes is held up by somebody who reads
        for work in batch:  # a sequence keeps the slot in which its keys lie
            assert work.slot == work.sequence.slot
            assert work.sequence.num_computed == 0 or self.held[work.slot] is work.sequence

        self.started += [each for each in scheduled if each not in self.started]
        self.held = {each.slot: each for each in self.sequences if each.slot is not None}
        compute(batch)

    @rule()
    def drop_all(self) -> None:
        open_before = [each for each in self.sequences if not each.is_over]
        dropped = self.scheduler.drop_all()

        assert all(each in dropped and each.finished for each in open_before)
        assert self.scheduler.is_idle
        self.held = {}

    @invariant()
    def every_slot_is_free_or_held_once(self) -> None:
        held = [each.slot for each in self.sequences if each.slot is not None]
        assert len(set(held)) == len(held) == self.scheduler.num_running
        assert all(0 <= slot < self.slots for slot in held)

    @invariant()
    def first_come_first_served(self) -> None:
        """Who waits longer than another runs before it, if it still wants to."""
        first_waiting = next((each for each in self.sequences if each.slot is None and not each.is_over), None)
        if first_waiting:
            later = self.sequences[self.sequences.index(first_waiting) :]
            assert not any(each.slot is not None for each in later)

    def teardown(self) -> None:
        """Everything finishes, and every slot comes home."""
        if not hasattr(self, "scheduler"):
            return
        longest = sum(len(each.job.prompt) + each.max_tokens for each in self.sequences)
        assert sum(1 for _ in steps(self.scheduler)) <= longest
        assert all(each.cancelled or each.finished for each in self.sequences)
        assert self.scheduler.is_idle
        assert self.scheduler.num_cached == 0
        for _ in range(self.slots):
            self.scheduler.add(sequence(1))
        assert sorted(work.slot for work in self.scheduler.schedule()) == list(range(self.slots))


TestService = Service.TestCase
TestService.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


@given(prompts=st.lists(LENGTHS, min_size=1, max_size=8), budget=st.integers(1, 16))
@settings(deadline=None)
def test_prompts_are_read_in_the_order_they_came(prompts: list[int], budget: int) -> None:
    scheduler = Scheduler(num_slots=3, max_tokens=budget)
    sequences = [sequence(length) for length in prompts]
    for each in sequences:
        scheduler.add(each)

    for batch in steps(scheduler):
        reading = [sequences.index(work.sequence) for work in batch if work.sequence.num_pending > 1]
        assert reading == sorted(reading)
        cut = [work for work in batch if work.num_tokens < work.sequence.num_pending]
        assert len(cut) <= 1  # the budget is given to the first, not spread over all


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

    works = [(work.start, work.end, work.samples) for batch in steps(scheduler) for work in batch]

    assert works == [(0, 4, False), (4, 8, False), (8, 10, True)]


def test_a_small_budget_still_lets_every_running_sequence_write() -> None:
    scheduler = Scheduler(num_slots=4, max_tokens=1)
    for _ in range(4):
        scheduler.add(sequence(1, answer=3))

    assert [len(batch) for batch in steps(scheduler)] == [4, 4, 4]


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
