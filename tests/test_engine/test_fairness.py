"""Rounds between owners: whoever floods, the others wait a bounded number of steps; and nobody's prompts show."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.engine.base import Job, SamplingParams
from services.engine.execution.local_executor import LocalExecutor
from services.engine.execution.runner_factory import build_runner
from services.engine.local import LocalEngine
from services.engine.paged.runner import PagingConfig
from services.engine.scheduling.fairness import MOST, QUANTUM, SLICE, may_queue
from services.engine.scheduling.scheduler import Scheduler
from services.engine.scheduling.sequence import Sequence
from services.errors import Overloaded
from tests.test_engine import fakes
from tests.test_engine.fakes import Counting, Gate, job, running, said
from tests.test_engine.recorder import Recorder
from tests.test_engine.test_scheduler import Memory, compute, sequence, steps
from tests.test_engine.tiny_models import build
from tests.test_engine.tiny_tokenizers import byte_level

ALPHA, BETA = "alpha", "beta"


def flooded(count: int, prompt: int, answer: int, *, steps: int = 0, priority: int = 0, **options: Any) -> Scheduler:
    """With `count` sequences of alpha's, `steps` after they came."""
    scheduler = Scheduler(**{"num_slots": 4, "max_tokens": 64, **options})
    for index in range(count):
        scheduler.add(sequence(prompt, answer, first=1000 * index, priority=priority, owner=ALPHA))
    for _ in range(steps):
        compute(scheduler.schedule())
    return scheduler


def steps_until_it_writes(scheduler: Scheduler, each: Sequence, most: int = 10_000) -> int:
    scheduler.add(each)
    for number in range(1, most + 1):
        compute(scheduler.schedule())
        if each.num_sampled:
            return number
    raise AssertionError(f"nothing after {most} steps")


# --- slots ---


def test_long_streams_of_one_owner_give_a_slot_to_another() -> None:
    scheduler = flooded(40, prompt=10, answer=5000, steps=100)

    assert steps_until_it_writes(scheduler, sequence(10, answer=3, owner=BETA)) == 1
    assert scheduler.num_preemptions == 1


def test_a_sequence_writes_for_a_while_before_it_gives_way() -> None:
    scheduler = flooded(40, prompt=10, answer=5000, steps=2)  # a token each

    assert steps_until_it_writes(scheduler, sequence(10, owner=BETA)) == SLICE - 2 + 1


def test_the_newest_gives_way_and_says_in_the_end_what_it_would_have_said() -> None:
    scheduler = Scheduler(num_slots=2, max_tokens=64)
    older, newer = (sequence(20, answer=100, first=1000 * i, owner=ALPHA) for i in range(2))
    memory = Memory(2, length=200)
    for each in (older, newer):
        scheduler.add(each)
    slots = []
    for number, scheduled in enumerate(steps(scheduler, memory)):
        slots.append({entry.sequence for entry in scheduled})
        if number == 30:
            scheduler.add(sequence(20, answer=10, first=5000, owner=BETA))

    assert all(older in each for each in slots[:100])
    assert newer not in slots[32]
    assert newer.num_sampled == older.num_sampled == 100


def test_slots_are_shared_in_equal_parts_and_then_nobody_gives_way_any_more() -> None:
    scheduler = flooded(40, prompt=10, answer=5000, steps=100, num_slots=8)
    for index in range(40):
        scheduler.add(sequence(10, 5000, first=100_000 + 1000 * index, owner=BETA))
    for _ in range(300):
        batch = scheduler.schedule()
        compute(batch)

    assert Counter(entry.sequence.job.owner for entry in batch.scheduled) == {ALPHA: 4, BETA: 4}
    assert scheduler.num_preemptions == 4


def test_with_more_owners_than_slots_all_have_their_turns() -> None:
    scheduler = Scheduler(num_slots=1, max_tokens=64)
    long = [sequence(10, 5000, first=1000 * i, owner=f"owner {i}") for i in range(3)]
    for each in long:
        scheduler.add(each)
    for _ in range(4 * (QUANTUM + 2)):
        compute(scheduler.schedule())

    assert all(each.num_sampled >= QUANTUM for each in long)


def test_a_priority_orders_its_own_owners_only() -> None:
    scheduler = flooded(40, prompt=10, answer=30, num_slots=1, priority=-(2**31))
    later = sequence(10, owner=BETA, priority=2**31 - 1)

    assert steps_until_it_writes(scheduler, later) <= 40


def test_free_slots_go_from_owner_to_owner() -> None:
    scheduler = flooded(40, prompt=1, answer=1, num_slots=1)
    for _ in range(5):
        scheduler.add(sequence(1, owner=BETA))
    owners = [scheduled[0].sequence.job.owner for scheduled in steps(scheduler)]

    assert owners[:10] == [ALPHA, BETA] * 5


# --- memory and the budget ---


def test_a_full_cache_has_room_for_another_owner() -> None:
    scheduler = flooded(8, prompt=100, answer=2000, steps=60, num_slots=8, cache_tokens=1000, max_tokens=500)

    assert steps_until_it_writes(scheduler, sequence(100, owner=BETA)) <= SLICE


def test_who_fills_the_cache_gives_way_in_it() -> None:
    """And not who has come last."""
    scheduler = flooded(6, prompt=100, answer=2000, steps=20, num_slots=8, cache_tokens=1000, max_tokens=500)
    small = sequence(20, answer=400, first=50_000, owner=BETA)
    scheduler.add(small)
    compute(scheduler.schedule())
    for _ in range(399):
        scheduler.schedule()
        assert small.slot is not None
        compute(scheduler.schedule())


def test_long_prompts_of_one_owner_do_not_hold_up_anothers() -> None:
    scheduler = flooded(20, prompt=8000, answer=1, steps=10, num_slots=32)

    assert steps_until_it_writes(scheduler, sequence(30, owner=BETA)) == 1


def test_who_has_begun_to_read_reads_on() -> None:
    """Giving way in the middle of it, again and again, it would never come to an end."""
    scheduler = Scheduler(num_slots=2, max_tokens=8, min_reuse=None)
    long = [sequence(200, answer=2, first=1000 * i, owner=ALPHA) for i in range(2)]
    for each in long:
        scheduler.add(each)
    for number in range(500):
        scheduler.add(sequence(4, answer=4, first=5000, owner=f"owner {number % 3}"))
        compute(scheduler.schedule())

    assert all(each.finished for each in long)


@given(
    slots=st.integers(1, 4),
    budget=st.integers(1, 32),
    cache_tokens=st.none() | st.just(128),
    floods=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 60), st.integers(-9, 9)), min_size=1, max_size=40),
    before=st.integers(0, 80),
    prompt=st.integers(1, 30),
)
@settings(max_examples=150, deadline=None)
def test_nobody_waits_for_the_end_of_a_flood(
    slots: int, budget: int, cache_tokens: int | None, floods: list[tuple[int, int, int]], before: int, prompt: int
) -> None:
    """Alpha has always more to say; beta's first token comes all the same."""
    scheduler = Scheduler(slots, budget, cache_tokens=cache_tokens)
    alphas = [sequence(size, answer, priority=priority, owner=ALPHA) for size, answer, priority in floods]
    for each in alphas:
        scheduler.add(each)
    late = sequence(prompt, owner=BETA)
    for number in range(20_000):
        if number == before:
            scheduler.add(late)
        compute(scheduler.schedule())
        for index, each in enumerate(alphas):
            if each.finished:
                alphas[index] = sequence(len(each.job.prompt), each.max_tokens, priority=-9, owner=ALPHA)
                scheduler.add(alphas[index])
        if late.num_sampled:
            break

    turns = 60 * slots + QUANTUM  # what is being read, and what has a turn
    assert number - before <= turns + 2 * prompt


# --- a queue ---


owners = st.sampled_from(["a", "b", "c", "d"])


@given(st.lists(st.tuples(owners, st.integers(1, 4), st.booleans()), max_size=200), st.integers(1, 12))
def test_a_queue_is_bounded_and_never_shut(asked: list[tuple[str, int, bool]], size: int) -> None:
    held: Counter[str] = Counter()
    for owner, amount, leaves in asked:
        if leaves:
            held.pop(owner, None)
        alone = not +Counter({each: n for each, n in held.items() if each != owner})
        enters = may_queue(held, owner, amount, size)
        assert enters or held[owner]  # whoever has nothing in it comes in
        assert enters is (held.total() + amount <= size or not held[owner]) or not alone  # as without owners
        held[owner] += amount * enters
        assert held.total() <= MOST * size + 4 * 4


def test_a_full_queue_takes_less_than_its_share_of_another() -> None:
    held = Counter({ALPHA: 100})

    assert not may_queue(held, ALPHA, 1, 100)
    assert may_queue(held, BETA, 50, 100)
    held[BETA] = 50
    assert not may_queue(held, BETA, 1, 100)
    held[ALPHA] = 40
    assert may_queue(held, ALPHA, 10, 100)


def of(owner: str, prompt: str = "abc", **more: Any) -> Job:
    return replace(job(prompt, max_tokens=1), owner=owner, **more)


async def test_a_full_queue_refuses_the_owner_that_fills_it() -> None:
    gate = Gate()
    async with running(Counting(num_slots=2, before=gate), max_queue=6) as engine:
        pieces = [await engine.submit(of(ALPHA)) for _ in range(8)]
        with pytest.raises(Overloaded, match=r"^The queue is full$"):
            await engine.submit(of(ALPHA))
        pieces += [await engine.submit(of(BETA)) for _ in range(4)]
        for owner, share in [(ALPHA, 8), (BETA, 4)]:
            with pytest.raises(Overloaded, match=f"and this key has its share of it: {share} of 12$"):
                await engine.submit(of(owner))
        gate.open()
        assert [await said(each) for each in pieces] == ["d"] * 12


# --- prefixes ---


async def cached(engine: LocalEngine, asked: Job) -> int:
    pieces = [piece async for piece in await engine.submit(asked)]
    return pieces[-1].cached_tokens


TEXT = "abcdefghijklmnopqrst"


@pytest.mark.parametrize(
    ("first", "then", "found"),
    [
        ({}, {}, 19),
        ({}, {"owner": BETA}, 0),
        ({}, {"owner": BETA, "num_public": 17}, 17),
        ({"num_public": 20}, {"owner": BETA}, 0),
        ({"cache_salt": "x"}, {"cache_salt": "x"}, 19),
        ({"cache_salt": "x"}, {"cache_salt": "y"}, 0),
        ({"cache_salt": "x"}, {}, 0),
        ({"cache_salt": "x"}, {"owner": BETA, "cache_salt": "x"}, 0),
        ({"cache_salt": "x"}, {"owner": BETA, "num_public": 20}, 19),
    ],
)
async def test_a_prefix_is_found_by_its_owner_under_its_salt(
    first: dict[str, Any], then: dict[str, Any], found: int
) -> None:
    async with running(Counting()) as engine:
        assert await cached(engine, of(**{"owner": ALPHA, "prompt": TEXT, **first})) == 0
        assert await cached(engine, of(**{"owner": ALPHA, "prompt": TEXT, **then})) == found


@pytest.mark.parametrize(("then", "found"), [({}, 19), ({"cache_salt": "y"}, 0)])
async def test_owners_that_share_find_each_others(then: dict[str, Any], found: int) -> None:
    runner = Counting()
    engine = LocalEngine(
        fakes.loaded(), LocalExecutor(runner), max_num_batched_tokens=16, max_queue=8, share_prefixes=True
    )
    engine.start()
    try:
        await cached(engine, of(ALPHA, TEXT))
        assert await cached(engine, of(BETA, TEXT, **then)) == found
    finally:
        await engine.stop()


@given(
    st.lists(st.tuples(owners, st.integers(1, 30), st.integers(0, 4)), min_size=2, max_size=12),
    st.integers(2, 5),
    st.integers(0, 8),
)
@settings(deadline=None)
def test_whatever_comes_finds_only_its_owners_and_what_is_public(
    asked: list[tuple[str, int, int]], slots: int, public: int
) -> None:
    scheduler = Scheduler(num_slots=slots, max_tokens=16, min_reuse=1)
    longest: Counter[str] = Counter()  # all prompts begin alike
    for owner, length, steps_between in asked:
        each = Sequence(Job("job", tuple(range(length)), owner=owner, num_public=min(public, length)), 2)
        scheduler.add(each)
        longest[owner] = max(longest[owner], public, length if owner in longest else 0)
        for _ in range(steps_between):
            compute(scheduler.schedule())
        assert (each.num_reused or 0) <= longest[owner]
        longest[owner] = max(longest[owner], length)


def test_nobody_waits_for_what_another_owner_reads() -> None:
    scheduler = Scheduler(num_slots=4, max_tokens=64)
    scheduler.add(sequence(200, owner=ALPHA))
    compute(scheduler.schedule())
    same, other = sequence(200, owner=ALPHA), sequence(200, owner=BETA)
    scheduler.add(same)
    scheduler.add(other)
    scheduler.schedule()

    assert same.slot is None
    assert other.slot is not None
    assert other.num_computed == 0


@pytest.mark.parametrize("paging", [None, PagingConfig(4, Recorder())], ids=["slots", "pages"])
async def test_a_number_in_anothers_prompt_cannot_be_found(paging: PagingConfig | None) -> None:
    """Digit by digit, by what was cached: as it can be in one's own."""
    model, tokenizer = build("llama"), byte_level()
    runner = build_runner(model, num_slots=3, length=64, budget=2**30, paging=paging)
    loaded = fakes.loaded(model, tokenizer, eos=len(tokenizer))
    engine = LocalEngine(loaded, LocalExecutor(runner), max_num_batched_tokens=64, max_queue=8)
    engine.start()
    known, pin, other = tuple(range(100, 120)), (4, 7, 1, 1), 190

    async def ask(owner: str, *tokens: int) -> int:
        return await cached(engine, Job("job", (*known, *tokens), SamplingParams(max_tokens=1), owner=owner))

    try:
        await ask(ALPHA, *pin, other)
        seen = [await ask(BETA, *pin[:-1], digit, other) for digit in range(10)]
        own = [await ask(ALPHA, *pin[:-1], digit, other + 1) for digit in (pin[-1], 0)]
        assert seen == [0] + [len(known) + len(pin) - 1] * 9
        assert own == [len(known) + len(pin), len(known) + len(pin) - 1]
    finally:
        await engine.stop()
