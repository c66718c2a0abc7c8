import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from random import Random

import pytest

from services.errors import Conflict, ServiceError, Unavailable
from services.history.write_batcher import MAX_BATCH, WriteBatcher


class Log:
    """A store that takes numbers: even ones it writes, odd ones it refuses, of negative ones the database fails."""

    def __init__(self) -> None:
        self.commits: list[list[int]] = []
        self.open = asyncio.Event()
        self.open.set()
        self.reached = asyncio.Event()
        self.away: Unavailable | None = None
        self.tries: int | None = None  # until it is away

    async def commit(self, numbers: Sequence[int]) -> Mapping[int, ServiceError]:
        self.reached.set()
        await self.open.wait()
        if self.away:
            raise self.away
        self._count()
        if any(number < 0 for number in numbers):
            raise ValueError("negative")
        self.commits.append([number for number in numbers if not number % 2])
        return {number: Conflict(str(number)) for number in numbers if number % 2}

    def _count(self) -> None:
        if self.tries is not None:
            if self.tries == 0:
                raise Unavailable("away")
            self.tries -= 1

    @property
    def written(self) -> list[int]:
        return [number for commit in self.commits for number in commit]


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def batcher(log: Log) -> WriteBatcher[int]:
    return WriteBatcher(log.commit)


async def outcomes(*waiting: Awaitable[None]) -> list[object]:
    return await asyncio.gather(*waiting, return_exceptions=True)


async def test_what_waits_at_the_same_moment_is_one_commit(log: Log, batcher: WriteBatcher[int]) -> None:
    await outcomes(*(batcher.add(number) for number in range(0, 64, 2)))
    assert log.commits == [list(range(0, 64, 2))]


async def test_what_comes_during_a_commit_is_the_next_one(log: Log, batcher: WriteBatcher[int]) -> None:
    log.open.clear()
    first = batcher.add(0)
    await log.reached.wait()
    later = [batcher.add(number) for number in (2, 4, 6)]
    assert not first.done()
    log.open.set()
    await outcomes(first, *later)
    assert log.commits == [[0], [2, 4, 6]]


async def test_a_commit_has_an_end(log: Log, batcher: WriteBatcher[int]) -> None:
    await outcomes(*(batcher.add(2 * number) for number in range(2 * MAX_BATCH + 1)))
    assert [len(commit) for commit in log.commits] == [MAX_BATCH, MAX_BATCH, 1]
    assert log.written == [2 * number for number in range(2 * MAX_BATCH + 1)]


async def test_a_refusal_reaches_its_own_alone(log: Log, batcher: WriteBatcher[int]) -> None:
    written, refused, also_written = await outcomes(*map(batcher.add, (0, 1, 2)))
    assert (written, also_written) == (None, None)
    assert isinstance(refused, Conflict)
    assert log.commits == [[0, 2]]


async def test_an_error_reaches_its_own_alone(log: Log, batcher: WriteBatcher[int]) -> None:
    written, failed, refused, also_written = await outcomes(*map(batcher.add, (0, -2, 1, 2)))
    assert (written, also_written) == (None, None)
    assert isinstance(failed, ValueError)
    assert isinstance(refused, Conflict)
    assert log.written == [0, 2]


async def test_a_store_that_is_away_is_away_for_all_that_wait(log: Log, batcher: WriteBatcher[int]) -> None:
    log.open.clear()
    log.away = Unavailable("away")
    first = batcher.add(0)
    await log.reached.wait()
    later = batcher.add(2)
    log.open.set()
    assert await outcomes(first, later) == [log.away, log.away]
    log.away = None
    await batcher.add(4)
    assert log.written == [4]


async def test_a_store_that_goes_away_while_a_group_is_taken_apart_is_away_for_its_rest(
    log: Log, batcher: WriteBatcher[int]
) -> None:
    log.tries = 2
    written, failed, *rest = await outcomes(*map(batcher.add, (0, -2, 2, 4)))
    assert written is None
    assert {type(each) for each in (failed, *rest)} == {Unavailable}


async def test_who_is_cancelled_while_he_waits_is_left_out(log: Log, batcher: WriteBatcher[int]) -> None:
    log.open.clear()
    writing = asyncio.ensure_future(_wait(batcher, 0))
    await log.reached.wait()
    waiting = [asyncio.ensure_future(_wait(batcher, number)) for number in (2, 4)]
    await asyncio.sleep(0)
    writing.cancel()
    waiting[0].cancel()
    log.open.set()
    done = await outcomes(writing, *waiting)
    assert [type(each) for each in done] == [asyncio.CancelledError, asyncio.CancelledError, type(None)]
    assert log.commits == [[0], [4]]


async def _wait(batcher: WriteBatcher[int], number: int) -> None:
    await batcher.add(number)


async def test_what_nobody_waits_for_is_written(log: Log, batcher: WriteBatcher[int]) -> None:
    batcher.add(0)
    await batcher.add(2)
    assert log.commits == [[0, 2]]


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_happens_everybody_hears_what_became_of_his_own(
    seed: int, log: Log, batcher: WriteBatcher[int]
) -> None:
    """In any order of arrivals, errors, refusals, cancellations and outages, what is told is what is written."""
    rng = Random(seed)
    waiting: dict[int, asyncio.Task[None]] = {}
    for number in rng.sample(range(-40, 200), 80):
        waiting[number] = asyncio.create_task(_wait(batcher, number))
        act = rng.choice(ACTS)
        act(log, rng.choice(list(waiting.values())))
        for _ in range(rng.randrange(3)):
            await asyncio.sleep(0)
    log.open.set()
    log.away = None
    errors = dict(zip(waiting, await outcomes(*waiting.values()), strict=True))
    await batcher.add(1000)
    assert [number for number, each in errors.items() if each is None] == [
        number for number in waiting if number in log.written and not waiting[number].cancelled()
    ]
    assert len(set(log.written)) == len(log.written)
    assert log.written == [*(number for number in waiting if number in log.written), 1000]
    for number, each in errors.items():
        assert isinstance(each, EXPECTED[number % 2 == 1, number < 0]), (number, each)


def _stop(log: Log, one: "asyncio.Task[None]") -> None:
    log.open.clear()


def _go(log: Log, one: "asyncio.Task[None]") -> None:
    log.open.set()


def _leave(log: Log, one: "asyncio.Task[None]") -> None:
    one.cancel()


def _go_away(log: Log, one: "asyncio.Task[None]") -> None:
    log.away = None if log.away else Unavailable("away")


ACTS: list[Callable[[Log, "asyncio.Task[None]"], None]] = [_stop, _go, _go, _leave, _go_away]
ALWAYS = (asyncio.CancelledError, Unavailable)
EXPECTED: dict[tuple[bool, bool], tuple[type, ...]] = {  # by whether it is odd, and negative
    (False, False): (*ALWAYS, type(None)),
    (True, False): (*ALWAYS, Conflict),
    (False, True): (*ALWAYS, ValueError),
    (True, True): (*ALWAYS, ValueError),
}
