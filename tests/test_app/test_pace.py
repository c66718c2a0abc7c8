"""Requests begin a few at a time, counted in iterations of the event loop."""

import asyncio
from collections import Counter

from starlette.types import Receive, Scope, Send

from app.common.middleware import PROBES
from app.common.pace import MOST, Pace, RequestPace


class Iterations:
    """Counts those of the running loop."""

    def __init__(self) -> None:
        self.now = 0
        self._go_on()

    def _go_on(self) -> None:
        self.now += 1
        self._handle = asyncio.get_running_loop().call_soon(self._go_on)

    def stop(self) -> None:
        self._handle.cancel()


async def test_a_flood_begins_in_its_order_a_few_at_a_time() -> None:
    pace, iterations, begun = Pace(most=3), Iterations(), list[tuple[int, int]]()

    async def request(number: int) -> None:
        await pace.turn()
        begun.append((number, iterations.now))

    await asyncio.gather(*map(request, range(20)))
    iterations.stop()
    assert [number for number, _ in begun] == [*range(20)]
    assert set(Counter(iteration for _, iteration in begun).values()) == {3, 2}


async def test_one_that_is_cancelled_holds_up_no_other() -> None:
    pace = Pace(most=1)
    requests = [asyncio.create_task(pace.turn()) for _ in range(4)]
    await asyncio.sleep(0)
    requests[1].cancel()
    await asyncio.gather(*requests, return_exceptions=True)
    assert [each.cancelled() for each in requests] == [False, True, False, False]
    await asyncio.wait_for(pace.turn(), 60)


async def test_probes_do_not_wait() -> None:
    order: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        order.append(scope["path"])

    paced = RequestPace(app)
    paths = [*["/v1/responses"] * (MOST + 2), *sorted(PROBES)]
    await asyncio.gather(*(paced({"type": "http", "path": path}, None, None) for path in paths))  # type: ignore[arg-type]
    assert order == [*["/v1/responses"] * MOST, *sorted(PROBES), *["/v1/responses"] * 2]
