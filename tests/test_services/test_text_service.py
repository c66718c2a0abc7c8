"""Who may read a long text, who waits and who is refused."""

import asyncio
from contextlib import suppress

import pytest

from services.errors import Overloaded
from services.text_service import SHORT, TextService, characters, trim_memory

LONG = SHORT + 1


class Reading:
    def __init__(self, texts: TextService, size: int = LONG) -> None:
        self.is_in = False
        self.may_go = asyncio.Event()
        self.task = asyncio.create_task(self._run(texts, size))

    async def _run(self, texts: TextService, size: int) -> None:
        async with texts.room(size):
            self.is_in = True
            await self.may_go.wait()

    async def leave(self) -> None:
        self.may_go.set()
        await self.task


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_a_few_at_once_and_the_first_first() -> None:
    texts = TextService(max_in_flight=2 * LONG)
    readings = [Reading(texts) for _ in range(4)]
    await settled()
    assert [each.is_in for each in readings] == [True, True, False, False]

    await readings[1].leave()
    await settled()
    assert [each.is_in for each in readings] == [True, True, True, False]
    for each in readings:
        await each.leave()


async def test_one_that_is_longer_than_all_room_goes_alone() -> None:
    texts = TextService(max_in_flight=2 * LONG)
    small, huge, after = Reading(texts), Reading(texts, 100 * LONG), Reading(texts)
    await settled()
    assert [small.is_in, huge.is_in, after.is_in] == [True, False, False]
    await small.leave()
    await settled()
    assert [huge.is_in, after.is_in] == [True, False]
    await huge.leave()
    await after.leave()


async def test_short_ones_never_wait() -> None:
    texts = TextService(max_in_flight=LONG)
    long, short = Reading(texts), Reading(texts, SHORT)
    await settled()
    assert [long.is_in, short.is_in] == [True, True]
    await long.leave()
    await short.leave()


async def test_too_many_that_wait_are_refused() -> None:
    texts = TextService(max_in_flight=LONG, max_waiting=2 * LONG)
    readings = [Reading(texts) for _ in range(3)]
    await settled()
    with pytest.raises(Overloaded):
        async with texts.room(LONG):
            pass
    for each in readings:
        await each.leave()


async def test_who_leaves_gives_its_place_away() -> None:
    texts = TextService(max_in_flight=LONG)
    first, waiting, let_in, last = (Reading(texts) for _ in range(4))
    await settled()
    waiting.task.cancel()
    await first.leave()  # lets the next one in, which leaves before it wakes
    let_in.task.cancel()
    await settled()
    assert last.is_in
    await last.leave()
    for each in (waiting, let_in):
        with suppress(asyncio.CancelledError):
            await each.task


def test_all_that_was_written_counts() -> None:
    messages = [
        {"role": "user", "content": "four"},
        {"role": "user", "content": [{"type": "text", "text": "four"}, {"type": "image_url", "image_url": {}}]},
        {"role": "assistant", "content": None, "reasoning_content": "four"},
    ]
    assert characters(messages) == 12


def test_memory_can_be_given_back() -> None:
    trim_memory()
