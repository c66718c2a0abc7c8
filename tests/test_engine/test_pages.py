"""No page is lost, none that is shared is written, and there are always enough, whatever the scheduler plans."""

from collections import Counter
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant

from services.engine.base import ANYBODY
from services.engine.scheduling import fairness
from services.engine.scheduling.pages import CopyPage, Pages
from services.engine.scheduling.scheduler import Batch, ScheduledSequence, Scheduler
from services.engine.scheduling.step import CacheChange, ClearSlot, CopySlot, SwapSlots
from tests.test_engine.test_scheduler import MAX_LENGTH, Memory, Service, compute, digests, sequence, steps

SLOTS = 4


class PagedMemory(Memory):
    """What the pages hold: digests of all tokens up to each position, as keys and values depend on all of them."""

    def __init__(self, num_pages: int, page_size: int, num_slots: int, length: int = MAX_LENGTH) -> None:
        self.pages = Pages(num_pages, page_size, num_slots, length)
        self.num_slots = num_slots
        self.content: list[list[int | None]] = [[None] * page_size for _ in range(num_pages)]

    @property
    def num_held(self) -> int:
        return (self.pages.num_pages - self.pages.num_free) * self.pages.page_size

    def apply(self, changes: list[CacheChange]) -> None:
        for change in changes:
            self.pages.apply(change)
        self.check()

    def compute(self, scheduled: list[ScheduledSequence]) -> None:
        self.claim(scheduled)
        for entry in scheduled:
            assert self.read(entry.slot, entry.start) == digests(entry, 0, entry.start)
            self.write(entry, digests(entry, entry.start, entry.end))

    def poison(self, scheduled: list[ScheduledSequence]) -> None:
        self.claim(scheduled)
        for entry in scheduled:
            self.write(entry, [-1] * entry.num_tokens)

    def claim(self, scheduled: list[ScheduledSequence]) -> None:
        copies = [copy for entry in scheduled for copy in self.pages.claim(entry.slot, entry.start, entry.end)]
        for copy in copies:  # all of them before anything is written
            self.content[copy.target][: copy.length] = self.content[copy.source][: copy.length]
        self.check()

    def write(self, entry: ScheduledSequence, values: list[int]) -> None:
        uses = self.uses()
        for position, value in zip(range(entry.start, entry.end), values, strict=True):
            index, offset = divmod(position, self.pages.page_size)
            page = self.pages.of(entry.slot)[index]
            assert uses[page] == 1
            self.content[page][offset] = value

    def read(self, slot: int, length: int) -> list[int | None]:
        return [each for page in self.pages.of(slot) for each in self.content[page]][:length]

    def uses(self) -> Counter[int]:
        return Counter(page for slot in range(self.num_slots) for page in self.pages.of(slot))

    def check(self) -> None:
        held = self.uses()
        assert len(held) + self.pages.num_free == self.pages.num_pages
        assert sum(held.values()) == sum(self.pages.num_users)


class PagedService(Service):
    @initialize(
        slots=st.integers(1, 5),
        budget=st.integers(1, 40),
        cache_tokens=st.none() | st.integers(MAX_LENGTH, 100),
        min_reuse=st.sampled_from([None, 1, 3]),
        page_size=st.sampled_from([1, 2, 3, 8]),
    )
    def start(self, slots: int, budget: int, cache_tokens: int | None, min_reuse: int | None, page_size: int) -> None:
        self.num_slots = slots
        self.budget = max(budget, slots)
        needed = -(-MAX_LENGTH // page_size)
        num_pages = slots * needed if cache_tokens is None else max(needed, cache_tokens // page_size)
        self.cache_tokens = None if cache_tokens is None else num_pages * page_size
        self.scheduler = Scheduler(
            slots, budget, cache_tokens=self.cache_tokens, min_reuse=min_reuse, page_size=page_size
        )
        self.memory = PagedMemory(num_pages, page_size, slots)
        self.owners = (ANYBODY,)
        self.ran = set()
        self.usual = fairness.SLICE, fairness.QUANTUM
        self.sequences = []
        self.batch = Batch([], [])

    @invariant()
    def pages_are_free_or_held(self) -> None:
        if hasattr(self, "memory"):
            self.memory.check()


TestPagedService = PagedService.TestCase
TestPagedService.settings = settings(max_examples=100, stateful_step_count=30, deadline=None)


@pytest.mark.usefixtures("no_headroom")
@pytest.mark.parametrize("seed", range(100))
def test_a_memory_that_is_always_full_never_runs_out(seed: int) -> None:
    chance = Random(seed)
    num_pages = chance.choice([9, 10, 12])
    scheduler = Scheduler(5, chance.choice([5, 7, 16]), cache_tokens=4 * num_pages, min_reuse=3, page_size=4)
    memory = PagedMemory(num_pages, 4, 5)
    for _ in range(200):
        if scheduler.num_waiting < 5 and chance.random() < 0.3:
            length = chance.randint(1, 30)
            scheduler.add(sequence(length, chance.randint(1, MAX_LENGTH - length), first=10 * chance.randint(0, 2)))
        batch = scheduler.schedule()
        memory.apply(batch.changes)
        memory.compute(batch.scheduled)
        compute(batch)


@given(
    page_size=st.sampled_from([2, 3, 8]),
    prompts=st.lists(st.integers(1, 12), min_size=1, max_size=5),
    spare=st.integers(0, 3),
)
@settings(deadline=None)
def test_guesses_never_take_the_last_page(page_size: int, prompts: list[int], spare: int) -> None:
    """They are written too, and may be the first in a new page."""
    num_pages = -(-30 // page_size) + spare
    scheduler = Scheduler(
        len(prompts), 64, cache_tokens=num_pages * page_size, min_reuse=None, page_size=page_size, speculative=True
    )
    pages = Pages(num_pages, page_size, len(prompts), 30)
    for length in prompts:
        each = sequence(1, answer=18)
        each.tokens = [1] * length  # so that there is something to guess
        each.job = sequence(length).job
        each.max_tokens = 30 - length
        scheduler.add(each)

    while (batch := scheduler.schedule()).scheduled:
        for change in batch.changes:
            pages.apply(change)
        for entry in batch.scheduled:
            pages.claim(entry.slot, entry.start, entry.end)
        for entry in batch.scheduled:
            if entry.samples:
                entry.sequence.num_computed = len(entry.sequence.tokens)
                entry.sequence.tokens.append(1)
                entry.sequence.finished = entry.sequence.num_sampled >= entry.sequence.max_tokens
            else:
                entry.sequence.num_computed += entry.num_tokens


@pytest.fixture
def pages() -> Pages:
    """Slot 0 holds 10 positions, in pages of 4."""
    pages = Pages(num_pages=12, page_size=4, num_slots=SLOTS, length=16)
    pages.claim(0, 0, 10)
    return pages


def test_a_prefix_is_shared_and_its_last_page_copied_by_who_writes_first(pages: Pages) -> None:
    pages.apply(CopySlot(0, 1, 6))
    assert pages.of(1) == pages.of(0)[:2]
    assert pages.num_free == 9

    copies = pages.claim(1, 6, 9)

    assert copies == [CopyPage(pages.of(0)[1], pages.of(1)[1], 2)]
    assert pages.of(1)[0] == pages.of(0)[0]
    assert len({*pages.of(0), *pages.of(1)}) == 5


def test_the_first_holder_is_no_exception(pages: Pages) -> None:
    pages.apply(CopySlot(0, 1, 10))
    shared = pages.of(0)

    assert pages.claim(0, 10, 11) == [CopyPage(shared[2], pages.of(0)[2], 2)]
    assert pages.claim(1, 10, 11) == []  # it has the page for itself by now
    assert pages.of(1) == shared


def test_what_is_written_over_is_not_copied(pages: Pages) -> None:
    pages.apply(CopySlot(0, 1, 8))

    assert pages.claim(1, 4, 8) == []
    assert pages.of(1)[0] == pages.of(0)[0]
    assert pages.of(1)[1] not in pages.of(0)


def test_slots_change_places(pages: Pages) -> None:
    held = pages.of(0)
    pages.apply(SwapSlots(0, 2, 10))

    assert (pages.of(0), pages.of(2)) == ([], held)


def test_pages_come_back_when_the_last_lets_go(pages: Pages) -> None:
    pages.apply(CopySlot(0, 1, 10))
    pages.apply(ClearSlot(0, 0, 10))
    assert pages.num_free == 9
    pages.apply(ClearSlot(1, 5, 10))
    assert (pages.num_free, len(pages.of(1))) == (10, 2)
    pages.apply(ClearSlot(1, 0, 5))
    assert pages.num_free == 12


def test_a_copy_takes_the_place_of_what_was_there(pages: Pages) -> None:
    pages.claim(1, 0, 16)
    pages.apply(CopySlot(0, 1, 3))

    assert pages.of(1) == pages.of(0)[:1]
    assert pages.num_free == 9


def test_many_share_a_prompt_of_which_there_is_one_copy() -> None:
    scheduler = Scheduler(SLOTS, max_tokens=64, cache_tokens=SLOTS * 60, min_reuse=16, page_size=4)
    memory = PagedMemory(SLOTS * 15, 4, SLOTS, length=40)
    for _ in range(SLOTS):
        scheduler.add(sequence(32, answer=4))

    for _ in steps(scheduler, memory):
        if scheduler.num_running == SLOTS:
            break

    assert scheduler.num_running == SLOTS
    assert memory.num_held < 2 * 40
