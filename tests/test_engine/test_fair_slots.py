"""Who gets a slot next, and who waits."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from services.engine.scheduling.fair_slots import FairSlots
from services.errors import Overloaded


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Work:
    """Enters a slot and stays there until it is let go."""

    def __init__(self, slots: FairSlots, owner: str) -> None:
        self.is_in = False
        self.may_go = asyncio.Event()
        self.task = asyncio.create_task(self._run(slots, owner))

    async def _run(self, slots: FairSlots, owner: str) -> None:
        async with slots.slot(owner):
            self.is_in = True
            await self.may_go.wait()
        self.is_in = False


async def test_one_owner_never_holds_all() -> None:
    slots = FairSlots(3, share=2, max_waiting=10)
    alphas = [Work(slots, "alpha") for _ in range(5)]
    await settled()
    beta = Work(slots, "beta")
    await settled()

    assert [each.is_in for each in alphas] == [True, True, False, False, False]
    assert beta.is_in
    for each in [*alphas, beta]:
        each.may_go.set()
    await asyncio.gather(*(each.task for each in [*alphas, beta]))


async def test_owners_take_turns() -> None:
    slots = FairSlots(1, share=1, max_waiting=10)
    names = ["alpha", "alpha", "alpha", "beta", "gamma"]
    order: list[str] = []

    async def run(name: str) -> None:
        async with slots.slot(name):
            order.append(name)
            await asyncio.sleep(0)

    await asyncio.gather(*map(run, names))
    assert order == ["alpha", "alpha", "beta", "gamma", "alpha"]  # the first two before anybody else had come


async def test_too_many_of_one_owner_are_refused() -> None:
    slots = FairSlots(1, share=1, max_waiting=2)
    async with AsyncExitStack() as held:
        await held.enter_async_context(slots.slot("alpha"))
        waiting = [Work(slots, "alpha") for _ in range(2)]
        await settled()
        with pytest.raises(Overloaded):
            await held.enter_async_context(slots.slot("alpha"))
        beta = Work(slots, "beta")
        await settled()
    for each in [*waiting, beta]:
        each.may_go.set()
    await asyncio.gather(*(each.task for each in [*waiting, beta]))


async def test_who_leaves_while_waiting_or_just_let_in_keeps_no_slot() -> None:
    slots = FairSlots(1, share=1, max_waiting=10)
    first = Work(slots, "alpha")
    await settled()
    leaving, let_in = Work(slots, "alpha"), Work(slots, "beta")
    await settled()
    leaving.task.cancel()
    await settled()
    first.may_go.set()
    await first.task
    let_in.task.cancel()  # its turn has come, and it has not yet woken
    await asyncio.gather(leaving.task, let_in.task, return_exceptions=True)

    last = Work(slots, "gamma")
    await settled()
    assert last.is_in
    last.may_go.set()
    await last.task
