"""Flex sequences, as those of batches, run in what the others leave: by steps, without a clock."""

from typing import Any

import pytest

from services.engine.scheduling import flex
from services.engine.scheduling.scheduler import Scheduler
from services.engine.scheduling.sequence import Sequence
from tests.test_engine.test_scheduler import compute, sequence, steps

FLEX, OTHER = "flex", "other"


def with_batch(count: int, prompt: int = 10, answer: int = 500, *, steps: int = 20, **options: Any) -> Scheduler:
    """A scheduler that is full of a batch's sequences."""
    scheduler = Scheduler(**{"num_slots": 4, "max_tokens": 64, **options})
    for index in range(count):
        scheduler.add(sequence(prompt, answer, FLEX, first=1000 * index, flex=True))
    for _ in range(steps):
        compute(scheduler.schedule())
    return scheduler


def until_its_first_token(scheduler: Scheduler, each: Sequence) -> list[list[str]]:
    """What each step computes besides it."""
    scheduler.add(each)
    beside = []
    while not each.num_sampled:
        batch = scheduler.schedule()
        beside.append([entry.sequence.job.id for entry in batch.scheduled if entry.sequence is not each])
        compute(batch)
    return beside


@pytest.mark.parametrize("owner", ["", "another"])
def test_a_request_takes_a_place_at_once_and_its_prefill_is_alone(owner: str) -> None:
    scheduler = with_batch(count=8)
    assert until_its_first_token(scheduler, sequence(100, 5, OTHER, first=-200, owner=owner)) == [[], []]
    assert scheduler.num_preemptions == 1


def test_it_goes_on_beside_its_decode() -> None:
    scheduler = with_batch(count=8)
    coming = sequence(10, 5, OTHER, first=-200)
    until_its_first_token(scheduler, coming)
    ids = [entry.sequence.job.id for entry in scheduler.schedule().scheduled]
    assert sorted(ids) == [FLEX, FLEX, FLEX, OTHER]


def test_a_request_waits_for_others_that_are_not_flex() -> None:
    scheduler = with_batch(count=2, num_slots=2)
    first, second, third = (sequence(10, 5, OTHER, first=-100 * number) for number in (1, 2, 3))
    for each in (first, second, third):
        scheduler.add(each)
    compute(scheduler.schedule())
    assert [each.num_sampled for each in (first, second, third)] == [1, 1, 0]
    assert scheduler.num_running == 2


def test_those_that_gave_way_come_back_after_the_others() -> None:
    scheduler = with_batch(count=4, answer=30)
    for number in range(1, 5):
        scheduler.add(sequence(10, 5, OTHER, first=-100 * number))
    order = [entry.sequence.job.id for scheduled in steps(scheduler) for entry in scheduled]
    assert FLEX not in order[: 4 * 5]
    assert order[-1] == FLEX


def test_a_batch_gets_no_place_that_a_request_waits_for() -> None:
    scheduler = Scheduler(num_slots=1, max_tokens=64)
    scheduler.add(sequence(10, 1, FLEX, flex=True, priority=-9))
    scheduler.add(sequence(10, 1, OTHER, priority=9))
    assert [entry.sequence.job.id for scheduled in steps(scheduler) for entry in scheduled] == [OTHER, FLEX]


def test_the_cache_is_given_up_too() -> None:
    scheduler = with_batch(count=2, prompt=30, num_slots=4, cache_tokens=200)
    assert until_its_first_token(scheduler, sequence(120, 5, OTHER, first=-200)) == [[], []]


def test_no_request_waits_for_a_prefix_that_pauses() -> None:
    scheduler = Scheduler(num_slots=2, max_tokens=64, min_reuse=4)
    scheduler.add(sequence(100, 5, FLEX, flex=True))
    compute(scheduler.schedule())
    assert until_its_first_token(scheduler, sequence(100, 5, OTHER)) == [[], []]


def test_their_steps_are_short() -> None:
    scheduler = Scheduler(num_slots=4, max_tokens=64)
    scheduler.add(sequence(100, 1, FLEX, flex=True))
    sizes = [sum(entry.num_tokens for entry in scheduled) for scheduled in steps(scheduler)]
    assert max(sizes) == 64 // flex.PREFILL_PART


def test_a_flood_of_prompts_does_not_stop_them_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex, "MAX_PAUSE", 3)
    scheduler = with_batch(count=1, num_slots=16)
    ran = []
    for number in range(12):
        scheduler.add(sequence(200, 1, OTHER, first=-1000 * (number + 1)))
        batch = scheduler.schedule()
        ran.append(any(entry.sequence.job.flex for entry in batch.scheduled))
        compute(batch)
    assert ran == [False, False, False, True] * 3


def test_flex_sequences_alone_are_fair_to_each_other() -> None:
    scheduler = with_batch(count=40, steps=100)
    coming = sequence(10, 3, owner="another", first=-200, flex=True)
    until_its_first_token(scheduler, coming)
    assert scheduler.num_preemptions == 1
