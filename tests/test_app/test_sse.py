"""The source of a stream is closed however the stream ends."""

import asyncio
from collections.abc import AsyncGenerator

import pytest
from pydantic import BaseModel
from starlette.types import Message

from app.common import sse
from app.common.sse import Sse, Stream
from services.errors import Overloaded

SCOPE = {"type": "http", "method": "GET"}


class Chunk(BaseModel):
    text: str


class Source:
    """Yields `texts`, then waits until `go` is set."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts
        self.go = asyncio.Event()
        self.is_open = False

    async def chunks(self) -> AsyncGenerator[Chunk, None]:
        self.is_open = True
        try:
            for text in self.texts:
                yield Chunk(text=text)
            await self.go.wait()
        finally:
            self.is_open = False


class Reader:
    """The client side of a connection."""

    def __init__(self) -> None:
        self.body = b""
        self.reads = asyncio.Event()
        self.reads.set()
        self.gone = asyncio.Event()
        self.has_read = asyncio.Event()

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        await self.reads.wait()
        self.body += message.get("body", b"")
        if self.body:
            self.has_read.set()


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture
def responses() -> Sse:
    return Sse(keepalive=60, send_timeout=60)


async def respond(stream: Stream, reader: Reader) -> None:
    await stream(SCOPE, reader.receive, reader.send)


async def test_closed_at_the_end(responses: Sse, reader: Reader) -> None:
    source = Source("one", "two")
    source.go.set()
    await respond(await responses.openai(source.chunks(), {}), reader)
    assert reader.body == b'data: {"text":"one"}\n\ndata: {"text":"two"}\n\ndata: [DONE]\n\n'
    assert not source.is_open


async def test_closed_if_the_reader_leaves_before_the_first_byte(responses: Sse, reader: Reader) -> None:
    source = Source("one")
    stream = await responses.openai(source.chunks(), {})
    assert source.is_open
    reader.gone.set()
    reader.reads.clear()
    await respond(stream, reader)
    assert not source.is_open


async def test_closed_if_the_reader_leaves_in_the_middle(responses: Sse, reader: Reader) -> None:
    source = Source("one")
    responding = asyncio.create_task(respond(await responses.openai(source.chunks(), {}), reader))
    await reader.has_read.wait()
    reader.gone.set()
    await responding
    assert reader.body == b'data: {"text":"one"}\n\n'
    assert not source.is_open


async def test_closed_if_the_reader_stops_reading(reader: Reader, caplog: pytest.LogCaptureFixture) -> None:
    source = Source("one")
    stream = await Sse(keepalive=60, send_timeout=0.01).openai(source.chunks(), {})

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            await asyncio.Event().wait()

    await stream(SCOPE, reader.receive, send)
    assert not source.is_open
    assert [(record.levelname, record.exc_info) for record in caplog.records] == [("WARNING", None)]


async def test_closed_if_cancelled_before_admission(responses: Sse) -> None:
    source = Source()
    waiting = asyncio.create_task(responses.openai(source.chunks(), {}))
    while not source.is_open:
        await asyncio.wait([waiting], timeout=0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert not source.is_open


async def test_closed_if_the_reader_leaves_before_admission(
    responses: Sse, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sse, "FIRST_EVENT_WAIT_S", 0)
    source = Source()
    stream = await responses.openai(source.chunks(), {})
    reader.gone.set()
    await respond(stream, reader)
    assert not source.is_open


async def test_error_of_the_first_step_is_raised(responses: Sse) -> None:
    async def refused() -> AsyncGenerator[Chunk, None]:
        raise Overloaded("full")
        yield Chunk(text="never")

    with pytest.raises(Overloaded):
        await responses.openai(refused(), {})


async def test_keep_alives_are_comments(reader: Reader) -> None:
    source = Source("one")
    stream = await Sse(keepalive=0.001, send_timeout=60).openai(source.chunks(), {})
    responding = asyncio.create_task(respond(stream, reader))
    while reader.body.count(b": keep-alive\n\n") < 2:
        reader.has_read.clear()
        await reader.has_read.wait()
    source.go.set()
    await responding
    data = reader.body.replace(b": keep-alive\n\n", b"")
    assert data == b'data: {"text":"one"}\n\ndata: [DONE]\n\n'
