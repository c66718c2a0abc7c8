"""Streams that several processes follow, on both databases."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import text

from database.session import Database
from schemas.response_answer_schema import StreamEvent
from services.conversation_service import ConversationService
from services.errors import NotFound, ServiceError
from services.history.background_stream import BackgroundStream
from services.history.turn import Turn, TurnRequest
from services.secret_service import SecretService
from services.stored_response_service import StoredResponseService
from services.stream_service import StreamReader, StreamService
from services.turn_service import TurnService
from tests.databases import waited_for
from tests.fakes import Pause

pytestmark = pytest.mark.both_databases


def event(number: int, *, last: bool = False) -> StreamEvent:
    return StreamEvent(number=number, type="text", data=f"{number}", last=last)


async def source(steps: Iterable[StreamEvent | Pause]) -> AsyncGenerator[StreamEvent, None]:
    for step in steps:
        if isinstance(step, Pause):
            step.reached.set()
            await step.go.wait()
        else:
            yield step


def ended(error: ServiceError, number: int) -> list[StreamEvent]:
    return [StreamEvent(number=number, type="error", data=error.message, last=True)]


async def rest_of(reader: StreamReader) -> list[int]:
    numbers: list[int] = []
    while batch := await reader.read():
        numbers += [each.number for each in batch]
    return numbers


class Process:
    """One of several that share a database."""

    def __init__(self, database: Database, name: str) -> None:
        self.streams = StreamService(database)
        self.turns = TurnService(database, writer=name)

    async def queue(self, conversation: str | None = None) -> Turn:
        opening = TurnRequest(owner="me", kind="response", conversation=conversation, stored=True, background=True)
        turn = await self.turns.open(opening)
        await turn.queue("a-model")
        return turn

    def write(self, turn: Turn, *steps: StreamEvent | Pause, is_transient: bool = False) -> None:
        self.streams.register(turn.id, BackgroundStream(source(steps), "me", ended, is_transient=is_transient))

    async def read(self, turn: Turn, after: int = -1) -> list[int]:
        return await rest_of(self.streams.reader(turn.id, after))


@asynccontextmanager
async def process(database: Database, name: str) -> AsyncIterator[Process]:
    found = Process(database, name)
    yield found
    await found.streams.close()


@pytest.fixture
async def one(database: Database) -> AsyncIterator[Process]:
    async with process(database, "a-host:1") as found:
        yield found


@pytest.fixture
async def other(database: Database) -> AsyncIterator[Process]:
    async with process(database, "another-host:1") as found:
        yield found


async def test_every_process_gets_every_event_once(one: Process, other: Process) -> None:
    turn = await one.queue()
    pause = Pause()
    one.write(turn, event(0), event(1), pause, event(2), event(3, last=True))
    following = other.streams.reader(turn.id, 0)
    assert await following.read() == [event(1)]
    pause.go.set()
    assert await rest_of(following) == [2, 3]
    assert await one.read(turn, 1) == [2, 3]


async def test_what_is_over_is_read_from_the_database(one: Process, other: Process) -> None:
    turn = await one.queue()
    one.write(turn, event(0), event(1), event(2, last=True))
    assert await one.read(turn) == [0, 1, 2]
    await one.streams.flush()
    assert one.streams.num_running == 0
    for reader in (one, other):
        assert await reader.read(turn) == [0, 1, 2]
        assert await reader.read(turn, 1) == [2]
        assert await reader.streams.last_event(turn.id) == event(2, last=True)


async def test_it_ends_where_nobody_writes_it_any_more(one: Process, other: Process) -> None:
    turn = await one.queue()
    pause = Pause()
    one.write(turn, event(0), pause)
    await pause.reached.wait()
    await one.streams.flush()
    await turn.finish()
    assert await other.read(turn) == [0]


async def test_one_that_was_still_waiting_when_its_server_was_killed_has_failed(
    one: Process, other: Process, database: Database
) -> None:
    turn = await one.queue()
    assert (await other.turns.answer(turn.id, "me", "response")).status == "queued"
    later = TurnService(database, writer="a-host:1")
    await later.checkpoints.settle_abandoned()
    assert (await other.turns.answer(turn.id, "me", "response")).status == "failed"


@pytest.mark.parametrize("how", ["cancel", "delete"])
async def test_what_another_process_ends_ends_here(one: Process, other: Process, how: str) -> None:
    turn = await one.queue()
    pause = Pause()
    one.write(turn, event(0), pause)
    await pause.reached.wait()
    await getattr(other.turns, how)(turn.id, "me", "response")
    await one.streams.flush()
    assert one.streams.num_running == 0
    await one.streams.flush()
    assert await other.streams.last_event(turn.id) == (ended_event() if how == "cancel" else None)


async def test_one_of_a_conversation_is_deleted_from_elsewhere(
    one: Process, other: Process, database: Database
) -> None:
    conversation = (await ConversationService(database).create("me")).id
    turn = await one.queue(conversation)
    pause = Pause()
    one.write(turn, event(0), pause)
    await pause.reached.wait()
    await StoredResponseService(other.turns, other.streams, SecretService(database)).delete(turn.id, "me")
    await one.streams.flush()
    assert one.streams.num_running == 0
    with pytest.raises(NotFound):
        await one.turns.answer(turn.id, "me", "response")


def ended_event() -> StreamEvent:
    return StreamEvent(number=1, type="error", data="The answer was stopped", last=True)


async def test_a_write_that_is_done_again_changes_nothing(one: Process, other: Process) -> None:
    turn = await one.queue()
    for events in ([event(0)], [event(0)], [event(0), event(1, last=True)]):
        await one.streams.store(turn.id, events)
    assert await other.read(turn) == [0, 1]


async def test_what_others_have_once_it_is_over_is_not_kept(one: Process, database: Database) -> None:
    turn = await one.queue()
    pause = Pause()
    one.write(turn, event(0), pause, event(1, last=True), is_transient=True)
    await pause.reached.wait()
    await one.streams.flush()
    assert await count(database) == 1
    pause.go.set()
    assert await one.read(turn) == [0, 1]
    await one.streams.flush()
    assert await count(database) == 0


async def test_one_that_is_deleted_while_it_is_written_is_no_error(one: Process, database: Database) -> None:
    turn = await one.queue()
    one.write(turn, event(0), event(1, last=True))
    assert await one.read(turn) == [0, 1]
    async with database.write() as session:
        await session.execute(text("DELETE FROM turns"))
        beat = asyncio.create_task(one.streams.flush())
        await waited_for(session, 1)
    await beat
    assert one.streams.num_running == 0


async def test_it_goes_with_its_turn(one: Process, database: Database) -> None:
    turn = await one.queue()
    one.write(turn, event(0, last=True))
    assert await one.read(turn) == [0]
    await one.streams.flush()
    await turn.finish()
    await one.turns.delete(turn.id, "me", "response")
    assert await count(database) == 0


async def test_shutdown_is_sent_and_stored(one: Process, other: Process) -> None:
    turn = await one.queue()
    pause = Pause()
    one.write(turn, event(0), pause)
    await pause.reached.wait()
    await one.streams.close()
    await turn.finish()
    assert await other.read(turn) == [0, 1]
    last = await other.streams.last_event(turn.id)
    assert last is not None
    assert last.data == "The server is shutting down"


async def count(database: Database) -> int:
    async with database.read() as session:
        return int(await session.scalar(text("SELECT count(*) FROM stream_batches")) or 0)
