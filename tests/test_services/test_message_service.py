"""The simple routes' service: answers that outlive their readers, and go on where a reader left off."""

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
from services.errors import EngineFailed, InvalidRequest, NotFound, Overloaded
from services.message_service import MessageService
from services.metrics_service import Metrics
from services.model_service import ModelConfig, ModelManager
from services.turn_service import TurnService
from tests.apps import MODEL
from tests.fakes import FakeEngine, Pause

ASKED = Question(prompt="hi")


@pytest.fixture
async def messages(
    chat: ChatService, turns: TurnService, conversations: ConversationService
) -> AsyncIterator[MessageService]:
    messages = MessageService(chat, turns, conversations)
    yield messages
    await messages.stop()


async def all_of(events: AsyncIterator[BrowserEvent] | None) -> list[BrowserEvent]:
    assert events is not None
    return [event async for event in events]


def text_of(events: list[BrowserEvent]) -> str:
    return "".join(event.data or "" for event in events if event.event is None)


def facts(event: BrowserEvent) -> dict[str, object]:
    found: dict[str, object] = orjson.loads(event.data or "")
    return found


class TestAsk:
    async def test_the_id_comes_first_then_the_text_then_the_end(self, messages: MessageService) -> None:
        first, *texts, last = await all_of(messages.ask(ASKED, "me"))
        message_id = first.id.partition(":")[0]
        assert (first.id, first.event, facts(first)["message_id"]) == (f"{message_id}:0", "start", message_id)
        assert first.retry
        assert text_of(texts) == "Hello, world!"
        assert texts[-1].id == f"{message_id}:13"
        assert (last.id, last.event) == (f"{message_id}:end", "done")
        assert facts(last)["message_id"] == message_id
        assert facts(last)["finish_reason"] == "stop"

    async def test_it_begins_a_conversation_and_goes_on_with_it(
        self, messages: MessageService, engine: FakeEngine
    ) -> None:
        last = (await all_of(messages.ask(ASKED, "me")))[-1]
        conversation = str(facts(last)["conversation_id"])
        await all_of(messages.ask(Question(prompt="more", conversation_id=conversation), "me"))
        assert engine.prompts[-1] == "<user>hi\n<assistant>Hello, world!\n<user>more\n<assistant>\n"

    async def test_refusal_is_raised_by_the_first_step(self, messages: MessageService, engine: FakeEngine) -> None:
        engine.refusal = Overloaded("full")
        with pytest.raises(Overloaded):
            await anext(messages.ask(ASKED, "me"))
        assert messages.num_live == 0

    async def test_answer_goes_on_without_its_reader(
        self, messages: MessageService, engine: FakeEngine, turns: TurnService
    ) -> None:
        pause = Pause()
        engine.script = ("Hel", pause, "lo")
        events = messages.ask(ASKED, "me")
        first = await anext(events)
        await pause.reached.wait()
        await events.aclose()
        assert messages.num_live == 1
        pause.go.set()
        await all_of(await messages.resume(first.id, "me"))
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
        asking = asyncio.create_task(anext(messages.ask(ASKED, "me")))
        await asyncio.to_thread(begun.wait)
        asking.cancel()
        await asyncio.wait([asking])
        gate.set()
        await models.get_model()
        assert engine.jobs == []
        assert await conversations.messages("me", None, limit=10) == []
        await models.stop()

    async def test_failure_midway_is_the_last_event(
        self, messages: MessageService, engine: FakeEngine, turns: TurnService
    ) -> None:
        engine.script = ("Hel", EngineFailed("The engine failed on this request"))
        *rest, last = await all_of(messages.ask(ASKED, "me"))
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

    async def test_unexpected_failure_is_told_without_its_text(
        self, messages: MessageService, engine: FakeEngine
    ) -> None:
        engine.script = ("Hel", ValueError("secret"))
        last = (await all_of(messages.ask(ASKED, "me")))[-1]
        assert last.event == "error"
        assert "secret" not in (last.data or "")

    async def test_stop_ends_it_with_an_error_and_stores_what_was_said(
        self, messages: MessageService, engine: FakeEngine, turns: TurnService
    ) -> None:
        pause = Pause()
        engine.script = ("Hel", pause)
        events = messages.ask(ASKED, "me")
        first = await anext(events)
        await pause.reached.wait()
        reading = asyncio.create_task(all_of(events))
        await messages.stop()
        assert (await reading)[-1].event == "error"
        stored = await turns.answer(first.id.partition(":")[0], "me", "message")
        assert (items.text(stored.output[0]), stored.status) == ("Hel", "incomplete")


class TestResume:
    async def ask(self, messages: MessageService) -> str:
        return (await all_of(messages.ask(ASKED, "me")))[0].id.partition(":")[0]

    @given(seen=st.integers(0, 20))
    @settings(max_examples=21)
    async def test_after_any_event_the_rest_comes_from_the_database(self, messages: MessageService, seen: int) -> None:
        message_id = await self.ask(messages)
        *texts, last = await all_of(await messages.resume(f"{message_id}:{seen}", "me"))
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
        self, messages: MessageService, engine: FakeEngine, pieces: list[str], data: st.DataObject
    ) -> None:
        pause = Pause()
        cut = data.draw(st.integers(0, len(pieces)))
        engine.script = (*pieces[:cut], pause, *pieces[cut:])
        first = await anext(messages.ask(ASKED, "me"))
        await pause.reached.wait()
        seen = data.draw(st.integers(0, len("".join(pieces[:cut]))))
        following = await messages.resume(f"{first.id.partition(':')[0]}:{seen}", "me")
        assert engine.running  # nothing comes from the database yet
        pause.go.set()
        assert text_of(await all_of(following)) == "".join(pieces)[seen:]

    async def test_several_readers_follow_one_answer(self, messages: MessageService, engine: FakeEngine) -> None:
        pause = Pause()
        engine.script = ("Hel", pause, "lo")
        first = await anext(messages.ask(ASKED, "me"))
        readers = [asyncio.create_task(all_of(await messages.resume(first.id, "me"))) for _ in range(3)]
        await pause.reached.wait()
        pause.go.set()
        assert [text_of(await reader) for reader in readers] == ["Hello"] * 3
        assert len(engine.jobs) == 1

    async def test_after_the_end_there_is_nothing(self, messages: MessageService) -> None:
        assert await messages.resume(f"{await self.ask(messages)}:end", "me") is None

    async def test_incomplete_answer_ends_with_an_error(self, messages: MessageService, engine: FakeEngine) -> None:
        engine.script = ("Hel", EngineFailed("broken"))
        message_id = await self.ask(messages)
        *texts, last = await all_of(await messages.resume(f"{message_id}:1", "me"))
        assert text_of(texts) == "el"
        assert (last.id, last.event) == (f"{message_id}:end", "error")

    @pytest.mark.parametrize("while_running", [True, False])
    async def test_somebody_elses_is_not_found(
        self, messages: MessageService, engine: FakeEngine, while_running: bool
    ) -> None:
        pause = Pause()
        engine.script = ("Hel", pause, "lo")
        first = await anext(messages.ask(ASKED, "me"))
        if not while_running:
            await pause.reached.wait()
            pause.go.set()
            await all_of(await messages.resume(first.id, "me"))
        with pytest.raises(NotFound):
            await messages.resume(first.id, "somebody else")

    async def test_unknown_one_is_not_found(self, messages: MessageService) -> None:
        with pytest.raises(NotFound):
            await messages.resume("0" * 32 + ":0", "me")

    @pytest.mark.parametrize(
        "id", ["", "5", "0" * 32, "0" * 31 + ":5", "0" * 32 + ":-1", "0" * 32 + ":²", "x" * 32 + ":1"]
    )
    async def test_what_is_no_event_id_is_refused(self, messages: MessageService, id: str) -> None:
        with pytest.raises(InvalidRequest):
            await messages.resume(id, "me")


class TestNew:
    async def test_answer_has_the_history_with_it(self, messages: MessageService) -> None:
        given = [{"role": "system", "content": "be brief"}, {"content": "before"}]
        answer = await messages.new(NewMessage(prompt="hi", history=given), "me")
        assert answer.response == "Hello, world!"
        assert [(each.role, each.content) for each in answer.history] == [
            ("system", "be brief"),
            ("user", "before"),
            ("user", "hi"),
            ("assistant", "Hello, world!"),
        ]

    async def test_history_grows_with_the_conversation(self, messages: MessageService) -> None:
        first = await messages.new(NewMessage(prompt="one"), "me")
        second = await messages.new(NewMessage(prompt="two", conversation_id=first.conversation_id), "me")
        assert [each.content for each in second.history] == ["one", "Hello, world!", "two", "Hello, world!"]

    async def test_answer_is_given_though_the_database_has_gone_meanwhile(
        self, messages: MessageService, turns: TurnService, engine: FakeEngine, sqlite_url: str
    ) -> None:
        pause = Pause()
        engine.script = ("Hel", pause, "lo")
        answering = asyncio.create_task(messages.new(NewMessage(prompt="hi"), "me"))
        await pause.reached.wait()
        other = Database(sqlite_url)
        async with other.write() as session:
            await session.execute(text("ALTER TABLE turns RENAME TO away"))
        pause.go.set()
        assert (await answering).response == "Hello"
        async with other.write() as session:
            await session.execute(text("ALTER TABLE away RENAME TO turns"))
        await other.close()
        await turns.keeper.checkpoint()
        stored = await turns.answer((await answering).message_id, "me", "message")
        assert items.text(stored.output[0]) == "Hello"

    async def test_it_is_stored(self, messages: MessageService, turns: TurnService) -> None:
        answer = await messages.new(NewMessage(prompt="hi"), "me")
        stored = await turns.answer(answer.message_id, "me", "message")
        assert (items.text(stored.output[0]), stored.conversation_id) == ("Hello, world!", answer.conversation_id)

    async def test_pieces_joined_are_the_answer(self, messages: MessageService) -> None:
        pieces = [piece async for piece in messages.stream(NewMessage(prompt="hi", stream=True), "me")]
        assert [piece.text for piece in pieces] == ["Hello", ", ", "world!"]
        assert len({piece.message_id for piece in pieces}) == 1

    async def test_the_whole_is_one_piece(self, messages: MessageService) -> None:
        pieces = [piece async for piece in messages.whole(NewMessage(prompt="hi"), "me")]
        assert [piece.text for piece in pieces] == ["Hello, world!"]

    async def test_sampling_is_passed_on(self, messages: MessageService, engine: FakeEngine) -> None:
        await messages.new(NewMessage(prompt="hi", max_tokens=7, temperature=0, top_p=0.5), "me")
        sampling = engine.jobs[0].sampling
        assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (7, 0, 0.5)

    async def test_history_and_conversation_exclude_each_other(self, messages: MessageService) -> None:
        asked = NewMessage(prompt="hi", history=[{"content": "before"}], conversation_id="conv_" + "0" * 32)
        for call in (
            messages.new(asked, "me"),
            anext(messages.stream(asked, "me")),
            anext(messages.whole(asked, "me")),
        ):
            with pytest.raises(InvalidRequest) as refused:
                await call
            assert refused.value.param == "history"


class TestMessages:
    async def test_pages_join_to_the_whole(self, messages: MessageService) -> None:
        conversation = (await messages.new(NewMessage(prompt="one"), "me")).conversation_id
        await messages.new(NewMessage(prompt="two", conversation_id=conversation), "me")
        everything = await messages.messages("me", conversation, 100, None)
        assert [each.content for each in everything.data] == ["one", "Hello, world!", "two", "Hello, world!"]
        assert not everything.has_more
        first = await messages.messages("me", conversation, 3, None)
        second = await messages.messages("me", conversation, 3, first.last_id)
        assert (first.has_more, second.has_more) == (True, False)
        assert first.data + second.data == everything.data
        assert (second.first_id, second.last_id) == (second.data[0].id, second.data[0].id)

    async def test_the_latest_conversation_is_meant_where_none_is_named(self, messages: MessageService) -> None:
        await messages.new(NewMessage(prompt="one"), "me")
        await messages.new(NewMessage(prompt="two"), "me")
        assert [each.content for each in (await messages.messages("me", None, 10, None)).data] == [
            "two",
            "Hello, world!",
        ]

    async def test_there_may_be_none(self, messages: MessageService) -> None:
        nothing = await messages.messages("me", None, 10, None)
        assert (nothing.data, nothing.first_id, nothing.last_id, nothing.has_more) == ([], None, None, False)
