"""The simple routes' service: answers to those who wait for them."""

import asyncio

import pytest
from sqlalchemy import text

from database.session import Database
from schemas.message_schema import NewMessage, Question
from services.chat import items
from services.chat_service import ChatService
from services.conversation_service import ConversationService
from services.errors import InvalidRequest
from services.message_service import MessageService
from services.turn_service import TurnService
from tests.fakes import FakeEngine, Pause

ASKED = Question(prompt="hi")


@pytest.fixture
def messages(chat: ChatService, turns: TurnService, conversations: ConversationService) -> MessageService:
    return MessageService(chat, turns, conversations)


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
        await turns.checkpoints.checkpoint()
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
        new_message = NewMessage(prompt="hi", history=[{"content": "before"}], conversation_id="conv_" + "0" * 32)
        for call in (
            messages.new(new_message, "me"),
            anext(messages.stream(new_message, "me")),
            anext(messages.whole(new_message, "me")),
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
