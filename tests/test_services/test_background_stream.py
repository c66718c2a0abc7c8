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


def closing_events(error: ServiceError, number: int) -> list[StreamEvent]:
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
    return BackgroundStream(source(*steps), "me", closing_events)


async def test_a_reader_gets_what_is_there_and_what_comes() -> None:
    pause = Pause()
    stream = streaming(event(0), event(1), pause, event(2))
    await pause.reached.wait()
    assert await stream.events_after(-1) == [event(0), event(1)]
    waiting = asyncio.ensure_future(stream.events_after(1))
    pause.go.set()
    assert await waiting == [event(2)]
    assert await stream.events_after(2) == []
    assert stream.is_finished


async def test_a_refusal_before_the_first_event_is_raised() -> None:
    stream = streaming(Overloaded("full"))
    with pytest.raises(Overloaded):
        await stream.first_event()
    assert await stream.events_after(-1) == []


@pytest.mark.parametrize(
    ("broken", "message"), [(EngineFailed("It broke"), "It broke"), (KeyError("x"), background_stream.INTERRUPTED)]
)
async def test_a_later_failure_is_the_last_event(broken: Exception, message: str) -> None:
    stream = streaming(event(0), broken)
    await stream.first_event()
    *_, last = await until_over(stream)
    assert last == StreamEvent(number=1, type="error", data=message, last=True)


async def test_readers_of_a_stopped_stream_get_the_reason() -> None:
    pause = Pause()
    stream = streaming(event(0), pause)
    await pause.reached.wait()
    await stream.stop(Stopped("Enough"))
    assert (await until_over(stream))[-1].data == "Enough"


async def test_who_leaves_before_the_first_event_takes_the_request_along() -> None:
    pause = Pause()
    stream = streaming(pause, event(0))
    starting = asyncio.ensure_future(stream.first_event())
    await pause.reached.wait()
    starting.cancel()
    assert await stream.events_after(-1) == []
    assert stream.is_finished


async def test_only_so_much_of_what_is_saved_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_stream, "MAX_SAVED_IN_MEMORY", 3)
    stream = streaming(*(event(number) for number in range(10)))
    assert len(await until_over(stream)) == 10
    stream.mark_saved([event(number) for number in range(8)])
    assert stream.unsaved_events() == [event(8), event(9)]
    assert await stream.events_after(3) is None
    assert [each.number for each in await stream.events_after(4) or []] == [5, 6, 7, 8, 9]


async def until_over(stream: BackgroundStream) -> list[StreamEvent]:
    """All of it."""
    found: list[StreamEvent] = []
    while more := await stream.events_after(found[-1].number if found else -1):
        found += more
    return found
