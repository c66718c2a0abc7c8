import asyncio
from collections.abc import AsyncGenerator

import pytest

from schemas.response_answer_schema import StreamEvent
from services.errors import EngineFailed, Overloaded, ServiceError, Stopped
from services.history import background_stream
from services.history.background_stream import BackgroundStream
from tests.fakes import Pause


def event(number: int) -> StreamEvent:
    return StreamEvent(number=number, type="text", data=str(number))


def ended(error: ServiceError, number: int) -> list[StreamEvent]:
    return [StreamEvent(number=number, type="error", data=error.message, last=True)]


async def source(*steps: StreamEvent | Pause | Exception) -> AsyncGenerator[StreamEvent, None]:
    for step in steps:
        match step:
            case Pause():
                step.reached.set()
                await step.go.wait()
            case Exception():
                raise step
            case _:
                yield step


def streaming(*steps: StreamEvent | Pause | Exception) -> BackgroundStream:
    return BackgroundStream(source(*steps), "me", ended)


async def test_a_reader_gets_what_is_there_and_what_comes() -> None:
    pause = Pause()
    live = streaming(event(0), event(1), pause, event(2))
    await pause.reached.wait()
    assert await live.more(-1) == [event(0), event(1)]
    waiting = asyncio.ensure_future(live.more(1))
    pause.go.set()
    assert await waiting == [event(2)]
    assert await live.more(2) == []
    assert live.over


async def test_a_refusal_before_the_first_event_is_raised() -> None:
    live = streaming(Overloaded("full"))
    with pytest.raises(Overloaded):
        await live.started()
    assert await live.more(-1) == []


@pytest.mark.parametrize(
    ("broken", "message"), [(EngineFailed("It broke"), "It broke"), (KeyError("x"), background_stream.INTERRUPTED)]
)
async def test_what_breaks_later_is_told_by_the_last_event(broken: Exception, message: str) -> None:
    live = streaming(event(0), broken)
    await live.started()
    *_, last = await until_over(live)
    assert last == StreamEvent(number=1, type="error", data=message, last=True)


async def test_readers_of_a_stopped_stream_are_told_why() -> None:
    pause = Pause()
    live = streaming(event(0), pause)
    await pause.reached.wait()
    await live.stop(Stopped("Enough"))
    assert (await until_over(live))[-1].data == "Enough"


async def test_who_leaves_before_the_first_event_takes_the_request_along() -> None:
    pause = Pause()
    live = streaming(pause, event(0))
    starting = asyncio.ensure_future(live.started())
    await pause.reached.wait()
    starting.cancel()
    assert await live.more(-1) == []
    assert live.over


async def test_only_so_much_of_what_is_saved_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_stream, "KEPT", 3)
    live = streaming(*(event(number) for number in range(10)))
    assert len(await until_over(live)) == 10
    live.saved([event(number) for number in range(8)])
    assert live.unsaved() == [event(8), event(9)]
    assert await live.more(3) is None
    assert [each.number for each in await live.more(4) or []] == [5, 6, 7, 8, 9]


async def until_over(live: BackgroundStream) -> list[StreamEvent]:
    """All of it."""
    found: list[StreamEvent] = []
    while more := await live.more(found[-1].number if found else -1):
        found += more
    return found
