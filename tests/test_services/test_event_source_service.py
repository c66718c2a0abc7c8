"""Answers that outlive their readers, and go on where a reader left off."""

import asyncio
import threading
from collections.abc import AsyncIterator

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from database.session import Database
from schemas.message_schema import BrowserEvent, NewMessage, Question
from services.chat import items
from services.chat_service import ChatService
from services.conversation_service import ConversationService
from services.errors import EngineFailed, InvalidRequest, NotFound, Overloaded, Stopped
from services.event_source_service import EventSourceService
from services.message_service import MessageService
from services.metrics_service import Metrics
from services.model_service import ModelManager
from services.models.config import ModelConfig
from services.stream_service import StreamService
from services.turn_service import TurnService
from tests.apps import MODEL
from tests.fakes import FakeEngine, Pause

ASKED = Question(prompt="hi")


@pytest.fixture
async def streams(store: Database) -> AsyncIterator[StreamService]:
    streams = StreamService(store)
    yield streams
    await streams.close()


@pytest.fixture
def messages(chat: ChatService, turns: TurnService, conversations: ConversationService) -> MessageService:
    return MessageService(chat, turns, conversations)


@pytest.fixture
def service(messages: MessageService, turns: TurnService, streams: StreamService) -> EventSourceService:
    return EventSourceService(messages, turns, streams)


async def all_of(events: AsyncIterator[BrowserEvent] | None) -> list[BrowserEvent]:
    assert events is not None
    return [event async for event in events]


def text_of(events: list[BrowserEvent]) -> str:
    return "".join(event.data or "" for event in events if event.event is None)


def facts(event: BrowserEvent) -> dict[str, object]:
    found: dict[str, object] = orjson.loads(event.data or "")
    return found


class TestAsk:
    async def test_the_id_comes_first_then_the_text_then_the_end(self, service: EventSourceService) -> None:
        first, *texts, last = await all_of(service.create(ASKED, "me"))
        message_id = first.id.partition(":")[0]
        assert (first.id, first.event, facts(first)["message_id"]) == (f"{message_id}:0", "start", message_id)
        assert first.retry
        assert text_of(texts) == "Hello, world!"
        assert texts[-1].id == f"{message_id}:13"
        assert (last.id, last.event) == (f"{message_id}:end", "done")
        assert facts(last)["message_id"] == message_id
        assert facts(last)["finish_reason"] == "stop"

    async def test_it_begins_a_conversation_and_goes_on_with_it(
        self, service: EventSourceService, engine: FakeEngine
    ) -> None:
        last = (await all_of(service.create(ASKED, "me")))[-1]
        conversation = str(facts(last)["conversation_id"])
        await all_of(service.create(Question(prompt="more", conversation_id=conversation), "me"))
        assert engine.prompts[-1] == "<user>hi\n<assistant>Hello, world!\n<user>more\n<assistant>\n"

    async def test_refusal_is_raised_by_the_first_step(
        self, service: EventSourceService, streams: StreamService, engine: FakeEngine
    ) -> None:
        engine.refusal = Overloaded("full")
        with pytest.raises(Overloaded):
            await anext(service.create(ASKED, "me"))
        assert streams.num_running == 0

    async def test_answer_goes_on_without_its_reader(
        self, service: EventSourceService, streams: StreamService, engine: FakeEngine, turns: TurnService
    ) -> None:
        pause = Pause()
        engine.script = ("Hel", pause, "lo")
        events = service.create(ASKED, "me")
        first = await anext(events)
        await pause.reached.wait()
        await events.aclose()
        assert streams.num_running == 1
        pause.go.set()
        await all_of(service.resume(first.id, "me"))
        stored = await turns.answer(first.id.partition(":")[0], "me", "message")
        assert (items.text(stored.output[0]), stored.status) == ("Hello", "completed")

    async def test_reader_that_leaves_before_it_was_admitted_takes_the_request_along(
        self, turns: TurnService, conversations: ConversationService, engine: FakeEngine
    ) -> None:
        begun, gate = threading.Event(), threading.Event()

        def build(kind: str, /, **options: object) -> FakeEngine:
            begun.set()
            gate.wait()
            return engine

        models = ModelManager([ModelConfig(MODEL, MODEL)], build=build)
        messages = MessageService(ChatService(models, turns, Metrics()), turns, conversations)
        service = EventSourceService(messages, turns, streams)
        asking = asyncio.create_task(anext(service.create(ASKED, "me")))
        await asyncio.to_thread(begun.wait)
        asking.cancel()
        await asyncio.wait([asking])
        gate.set()
        await models.get_model()
        assert engine.jobs == []
        assert (await conversations.messages("me", None, limit=10)).data == []
        await models.stop()

    async def test_failure_midway_is_the_last_event(
        self, service: EventSourceService, engine: FakeEngine, turns: TurnService
    ) -> None:
        engine.script = ("Hel", EngineFailed("The engine failed on this request"))
        *rest, last = await all_of(service.create(ASKED, "me"))
        assert text_of(rest) == "Hel"
        assert last.event == "error"
        assert last.id.endswith(":end")
        error = facts(last)["error"]
        assert error == {
            "message": "The engine failed on this request",
            "type": "server_error",
            "param": None,
            "code": None,
        }
        stored = await turns.answer(last.id.partition(":")[0], "me", "message")
        assert (items.text(stored.output[0]), stored.status) == ("Hel", "failed")

    async def test_unexpected_failure_hides_its_text(self, service: EventSourceService, engine: FakeEngine) -> None:
        engine.script = ("Hel", ValueError("secret"))
        last = (await all_of(service.create(ASKED, "me")))[-1]
        assert last.event == "error"
        assert "secret" not in (last.data or "")

    async def test_stop_ends_it_with_an_error_and_stores_the_output(
        self, service: EventSourceService, streams: StreamService, engine: FakeEngine, turns: TurnService
    ) -> None:
        pause = Pause()
        engine.script = ("Hel", pause)
        events = service.create(ASKED, "me")
        first = await anext(events)
        await pause.reached.wait()
        reading = asyncio.create_task(all_of(events))
        await streams.close()
        assert (await reading)[-1].event == "error"
        stored = await turns.answer(first.id.partition(":")[0], "me", "message")
        assert (items.text(stored.output[0]), stored.status) == ("Hel", "incomplete")


class TestStop:
    async def test_it_ends_there_with_the_output_so_far(
        self, service: EventSourceService, engine: FakeEngine, turns: TurnService
    ) -> None:
        pause = Pause()
        engine.script = ("Hel", pause)
        events = service.create(ASKED, "me")
        message_id = (await anext(events)).id.partition(":")[0]
        await pause.reached.wait()
        assert (await service.stop(message_id, "me")).status == "cancelled"
        *texts, last = await all_of(events)
        assert (text_of(texts), last.event, facts(last)["finish_reason"]) == ("Hel", "done", "cancelled")
        stored = await turns.answer(message_id, "me", "message")
        assert (items.text(stored.output[0]), stored.status) == ("Hel", "cancelled")
        again = await all_of(service.resume(f"{message_id}:1", "me"))
        assert (text_of(again), facts(again[-1])["finish_reason"]) == ("el", "cancelled")

    async def test_what_is_over_stays_as_it_is(self, service: EventSourceService, turns: TurnService) -> None:
        message_id = (await all_of(service.create(ASKED, "me")))[0].id.partition(":")[0]
        assert (await service.stop(message_id, "me")).status == "completed"

    async def test_somebody_elses_is_not_found(self, service: EventSourceService) -> None:
        message_id = (await all_of(service.create(ASKED, "me")))[0].id.partition(":")[0]
        with pytest.raises(NotFound):
            await service.stop(message_id, "somebody else")

    async def test_one_without_a_stream_of_its_own_ends_with_its_next_word(
        self, messages: MessageService, service: EventSourceService, engine: FakeEngine
    ) -> None:
        pause = Pause()
        engine.script = ("Hel", pause, "lo")
        reading = messages.stream(NewMessage(prompt="hi"), "me")
        first = await anext(reading)
        await service.stop(first.message_id, "me")
        pause.go.set()
        with pytest.raises(Stopped):
            await anext(reading)
        assert engine.running == set()


class TestOtherProcesses:
    @pytest.fixture
    async def other(
        self, chat: ChatService, conversations: ConversationService, store: Database
    ) -> AsyncIterator[EventSourceService]:
        turns, streams = TurnService(store, writer="a-host:2"), StreamService(store)
        yield EventSourceService(MessageService(chat, turns, conversations), turns, streams)
        await streams.close()

    async def test_another_one_follows_it_while_it_is_written(
        self, service: EventSourceService, other: EventSourceService, engine: FakeEngine
    ) -> None:
        pause = Pause()
        engine.script = ("Hello", pause, "!")
        first = await anext(service.create(ASKED, "me"))
        following = other.resume(f"{first.id.partition(':')[0]}:2", "me")
        assert following is not None
        assert (await anext(following)).data == "llo"
        pause.go.set()
        *texts, last = await all_of(following)
        assert (text_of(texts), last.event) == ("!", "done")

    async def test_another_one_stops_it(
        self, service: EventSourceService, other: EventSourceService, engine: FakeEngine
    ) -> None:
        pause = Pause()
        engine.script = ("Hello", pause, "!")
        events = service.create(ASKED, "me")
        first = await anext(events)
        await pause.reached.wait()
        await other.stop(first.id.partition(":")[0], "me")
        assert facts((await all_of(events))[-1])["finish_reason"] == "cancelled"

    async def test_what_was_written_for_others_goes_with_its_end(
        self, service: EventSourceService, streams: StreamService, store: Database
    ) -> None:
        await all_of(service.create(ASKED, "me"))
        await streams.flush()
        async with store.read() as session:
            assert await session.scalar(text("SELECT count(*) FROM stream_batches")) == 0


class TestResume:
    async def ask(self, service: EventSourceService) -> str:
        return (await all_of(service.create(ASKED, "me")))[0].id.partition(":")[0]

    @given(seen=st.integers(0, 20))
    @settings(max_examples=21)
    async def test_after_any_event_the_rest_comes_from_the_database(
        self, service: EventSourceService, seen: int
    ) -> None:
        message_id = await self.ask(service)
        *texts, last = await all_of(service.resume(f"{message_id}:{seen}", "me"))
        assert text_of(texts) == "Hello, world!"[seen:]
        assert (last.id, last.event) == (f"{message_id}:end", "done")

    @given(
        pieces=st.lists(
            st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=4), min_size=1, max_size=6
        ),
        data=st.data(),
    )
    @settings(max_examples=20)
    async def test_after_any_event_the_rest_comes_from_memory(
        self, service: EventSourceService, engine: FakeEngine, pieces: list[str], data: st.DataObject
    ) -> None:
        pause = Pause()
        cut = data.draw(st.integers(0, len(pieces)))
        engine.script = (*pieces[:cut], pause, *pieces[cut:])
        first = await anext(service.create(ASKED, "me"))
        await pause.reached.wait()
        seen = data.draw(st.integers(0, len("".join(pieces[:cut]))))
        following = service.resume(f"{first.id.partition(':')[0]}:{seen}", "me")
        assert engine.running  # nothing comes from the database yet
        pause.go.set()
        assert text_of(await all_of(following)) == "".join(pieces)[seen:]

    async def test_several_readers_follow_one_answer(self, service: EventSourceService, engine: FakeEngine) -> None:
        pause = Pause()
        engine.script = ("Hel", pause, "lo")
        first = await anext(service.create(ASKED, "me"))
        readers = [asyncio.create_task(all_of(service.resume(first.id, "me"))) for _ in range(3)]
        await pause.reached.wait()
        pause.go.set()
        assert [text_of(await reader) for reader in readers] == ["Hello"] * 3
        assert len(engine.jobs) == 1

    async def test_after_the_end_there_is_nothing(self, service: EventSourceService) -> None:
        assert service.resume(f"{await self.ask(service)}:end", "me") is None

    async def test_incomplete_answer_ends_with_an_error(self, service: EventSourceService, engine: FakeEngine) -> None:
        engine.script = ("Hel", EngineFailed("broken"))
        message_id = await self.ask(service)
        *texts, last = await all_of(service.resume(f"{message_id}:1", "me"))
        assert text_of(texts) == "el"
        assert (last.id, last.event) == (f"{message_id}:end", "error")

    @pytest.mark.parametrize("while_running", [True, False])
    async def test_somebody_elses_is_not_found(
        self, service: EventSourceService, engine: FakeEngine, while_running: bool
    ) -> None:
        pause = Pause()
        engine.script = ("Hel", pause, "lo")
        first = await anext(service.create(ASKED, "me"))
        if not while_running:
            await pause.reached.wait()
            pause.go.set()
            await all_of(service.resume(first.id, "me"))
        with pytest.raises(NotFound):
            await all_of(service.resume(first.id, "somebody else"))

    async def test_unknown_one_is_not_found(self, service: EventSourceService) -> None:
        with pytest.raises(NotFound):
            await all_of(service.resume("0" * 32 + ":0", "me"))

    @pytest.mark.parametrize(
        "id", ["", "5", "0" * 32, "0" * 31 + ":5", "0" * 32 + ":-1", "0" * 32 + ":²", "x" * 32 + ":1"]
    )
    async def test_what_is_no_event_id_is_refused(self, service: EventSourceService, id: str) -> None:
        with pytest.raises(InvalidRequest):
            service.resume(id, "me")
