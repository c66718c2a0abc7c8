import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from sqlite3 import connect as sqlite_connect
from uuid import uuid4

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from database import repositories
from database.session import Database
from schemas.chat_schema import ChatMessage
from services.chat import items
from services.chat.events import Arguments, Event, Finish, Head, Reasoning, Text, ToolCall
from services.chat.items import Item
from services.conversation_service import ConversationService, StoredMessage
from services.engine.base import TokenLogprob
from services.errors import Conflict, EngineFailed, GrammarStuck, NotFound, Stopped, Unavailable
from services.history import item_rows
from services.history.answer import Answer
from services.history.item_rows import ItemPosition
from services.history.turn import NO_FACTS, Facts, Turn, TurnRequest
from services.turn_service import IdempotencyKey, TurnService, this_writer
from tests.databases import NewDatabase, free_port


@pytest.fixture
def store(database: Database) -> Database:
    """Each of the two databases, where others keep to SQLite."""
    return database


@pytest.fixture
def service(database: Database) -> TurnService:
    return TurnService(database, writer=this_writer())


def replica(database: Database) -> TurnService:
    return TurnService(database, writer="another-host:1")


def input_items(*messages: ChatMessage | str) -> list[Item]:
    return items.from_messages(
        each if isinstance(each, ChatMessage) else ChatMessage(content=each) for each in messages
    )


def opening(*messages: ChatMessage | str, **fields: object) -> TurnRequest:
    kinds: dict[str, object] = {"owner": "me", "kind": "message", "create": True}
    return TurnRequest(input=input_items(*messages), **kinds | fields)  # type: ignore[arg-type]


def head(turn: Turn, n: int = 1) -> Head:
    return Head(turn.id, int(turn.created_at), "a-model", "fp_1", turn.conversation_id, n=n)


END = Finish("stop", 3, 2, cached_tokens=1)


def of_process(pid: int) -> str:
    return this_writer().replace(f":{os.getpid()}:", f":{pid}:")


async def begin(
    service: TurnService, *messages: ChatMessage | str, n: int = 1, facts: Facts = NO_FACTS, **fields: object
) -> Turn:
    turn = await service.new_turn(opening(*messages or ["Hello"], **fields))
    await turn.begin(head(turn, n), facts)
    turn.add(head(turn, n))
    return turn


async def finish(turn: Turn, *events: Event, **fields: object) -> None:
    for event in events:
        turn.add(event)
    await turn.finish(**fields)  # type: ignore[arg-type]


async def store_turn(
    service: TurnService, question: str, answer: str, conversation: str | None = None, **fields: object
) -> Turn:
    turn = await begin(service, question, conversation=conversation, **fields)
    await finish(turn, Text(answer), END)
    return turn


async def make_older(database: Database, turn: Turn, seconds: float) -> None:
    async with database.write() as session:
        statement = text("UPDATE turns SET updated_at = updated_at - :seconds WHERE id = :id")
        await session.execute(statement, {"seconds": seconds, "id": turn.id})


async def answer(service: TurnService, turn: Turn) -> Answer:
    return await service.answer(turn.id, "me", "message")


async def text_and_status(service: TurnService, turn: Turn) -> tuple[str, str]:
    stored = await answer(service, turn)
    return items.text(stored.output[0]) if stored.output else "", stored.status


async def history(service: TurnService, turn: Turn) -> list[object]:
    return [message.content for message in (await service.new_turn(opening(conversation=turn.conversation_id))).history]


def contents(messages: Sequence[StoredMessage]) -> list[object]:
    return [message.content for message in messages]


class TestTurn:
    async def test_begin_is_seen_by_others_at_once(self, service: TurnService, new_database: NewDatabase) -> None:
        turn = await begin(service, ChatMessage(role="system", content="Be brief"), "Hello")
        other = new_database()
        stored = (await ConversationService(other).messages("me", turn.conversation_id, limit=10)).data
        seen = await replica(other).answer(turn.id, "me", "message")
        assert [(message.role, message.content, message.status) for message in stored] == [
            ("system", "Be brief", "completed"),
            ("user", "Hello", "completed"),
            ("assistant", "", "in_progress"),
        ]
        assert (stored[-1].id, stored[-1].model) == (turn.id, "a-model")
        assert (seen.status, seen.is_finished, [item["role"] for item in seen.input]) == (
            "in_progress",
            False,
            ["system", "user"],
        )

    async def test_open_leaves_nothing_behind(self, service: TurnService, conversations: ConversationService) -> None:
        turn = await service.new_turn(opening("Hello"))
        assert (await conversations.messages("me", None, limit=10)).data == []
        with pytest.raises(NotFound):
            await service.new_turn(opening(conversation=turn.conversation_id))

    async def test_history_is_oldest_first(self, service: TurnService) -> None:
        turn = await store_turn(service, "1", "one")
        await store_turn(service, "2", "two", turn.conversation_id)
        assert await history(service, turn) == ["1", "one", "2", "two"]

    async def test_an_answer_is_found_again_as_it_was(self, service: TurnService) -> None:
        turn = await begin(service, kind="response", stored=True, metadata={"a": "b"}, facts={"top_p": 0.5})
        token = TokenLogprob("Hi", b"Hi", -0.5)
        call = [ToolCall("call_1", "weather", 0), Arguments("{}", 0)]
        await finish(turn, Reasoning("Hm"), Text("Hi", logprobs=(token,)), *call, END)
        stored = await service.answer(turn.id, "me", "response")
        assert (stored.status, stored.conversation_id, stored.model) == ("completed", turn.conversation_id, "a-model")
        assert (stored.metadata, stored.request, stored.fingerprint) == ({"a": "b"}, {"top_p": 0.5}, "fp_1")
        assert stored.usage == {
            "prompt_tokens": 3,
            "cached_tokens": 1,
            "completion_tokens": 2,
            "reasoning_tokens": 0,
        }
        assert [item["type"] for item in stored.output[0]] == ["reasoning", "message", "function_call"]
        assert stored.output[0][1]["id"] == f"msg_{turn.reply_id}"
        assert stored.choices[0]["finish_reason"] == "stop"
        assert stored.choices[0]["logprobs"] == [
            {"token": "Hi", "logprob": -0.5, "bytes": list(b"Hi"), "top_logprobs": []}
        ]

    async def test_calls_and_their_outputs_are_history(self, service: TurnService) -> None:
        turn = await begin(service, "Weather?")
        await finish(turn, Reasoning("Hm"), ToolCall("call_1", "weather", 0), Arguments('{"a": 1}', 0), END)
        output = ChatMessage(role="tool", tool_call_id="call_1", content="Rain")
        again = await begin(service, output, conversation=turn.conversation_id)
        await finish(again, Text("It rains"), END)
        then = await service.new_turn(opening(conversation=turn.conversation_id))
        assert [(each.role, each.content) for each in then.history] == [
            ("user", "Weather?"),
            ("assistant", None),
            ("tool", "Rain"),
            ("assistant", "It rains"),
        ]
        assert then.history[1].reasoning_content == "Hm"
        assert then.history[1].tool_calls[0].function.arguments == '{"a": 1}'

    async def test_choices_are_siblings(self, service: TurnService, database: Database) -> None:
        turn = await begin(service, "Hello", kind="chat.completion", create=False, stored=True, n=2)
        ends = [Finish("stop", 3, 2, index=index) for index in range(2)]
        await finish(turn, Text("a"), Text("b", index=1), *ends)
        stored = await service.answer(turn.id, "me", "chat.completion")
        assert [items.text(output) for output in stored.output] == ["a", "b"]
        assert stored.usage is not None
        assert stored.usage["completion_tokens"] == 4
        async with database.read() as session:
            kept = await repositories.of(session).items.of_turn(turn.id)
        assert [row.parent_id for row in kept] == [None, kept[0].id, kept[0].id]

    async def test_history_follows_the_newest_branch(self, service: TurnService, database: Database) -> None:
        turn = await store_turn(service, "1", "one")
        await store_turn(service, "2", "two", turn.conversation_id)
        assert turn.conversation_id is not None
        sibling = {"id": "msg_sibling", **input_items(ChatMessage(role="assistant", content="uno"))[0]}
        async with database.write() as session:
            repository = repositories.of(session).items
            first = (await repository.page(turn.conversation_id, limit=1))[0]
            await repository.add(
                item_rows.linked_rows([sibling], ItemPosition("me", turn.conversation_id, 0.0, first.id))
            )
        assert await history(service, turn) == ["1", "uno"]

    async def test_history_omits_empty_answers(self, service: TurnService) -> None:
        turn = await begin(service)
        await finish(turn)
        assert await history(service, turn) == ["Hello"]
        await finish(await begin(service, "Still there?", conversation=turn.conversation_id), Text("Ye"))
        assert await history(service, turn) == ["Hello", "Still there?", "Ye"]

    async def test_only_the_first_finish_counts(self, service: TurnService) -> None:
        turn = await store_turn(service, "1", "one")
        await finish(turn, Text(" more"), error=EngineFailed("too late"))
        assert await text_and_status(service, turn) == ("one", "completed")

    async def test_finish_without_begin_writes_nothing(
        self, service: TurnService, conversations: ConversationService
    ) -> None:
        turn = await service.new_turn(opening("Hello"))
        await turn.finish()
        assert (await conversations.messages("me", None, limit=10)).data == []

    @pytest.mark.parametrize(
        ("events", "error", "status"),
        [
            ([Text("Hi"), Finish("length", 3, 2)], None, "completed"),
            ([Text("Hi")], None, "incomplete"),
            ([Text("Hi")], Unavailable("shutting down"), "incomplete"),
            ([Text("Hi")], EngineFailed("broken"), "failed"),
            ([Text("Hi")], GrammarStuck("it is stuck", param="tools"), "failed"),
            ([Text("Hi"), END], EngineFailed("too late"), "completed"),
        ],
    )
    async def test_the_finish_reason_is_reported(
        self, service: TurnService, events: list[Event], error: Exception | None, status: str
    ) -> None:
        turn = await begin(service)
        await finish(turn, *events, error=error)
        stored = await answer(service, turn)
        assert stored.status == status
        is_cut = status != "completed" or events[-1] is not END
        assert stored.output[0][-1]["status"] == ("incomplete" if is_cut else "completed")
        assert (stored.error is not None) == (error is not None and status != "completed")

    async def test_content_comes_back_as_it_was(self, service: TurnService, conversations: ConversationService) -> None:
        parts = [{"type": "text", "text": "你好 \x00"}, {"type": "text", "text": "a lone surrogate \ud800"}]
        turn = await begin(service, ChatMessage(role="user", content=parts), ChatMessage(role="user", content=""))
        stored = (await conversations.messages("me", turn.conversation_id, limit=10)).data
        assert contents(stored) == [parts, "", ""]

    async def test_a_turn_that_is_not_stored(self, service: TurnService, conversations: ConversationService) -> None:
        turn = await begin(service, create=False)
        await finish(turn, Text("Hi"), END)
        assert turn.conversation_id is None
        assert len(turn.reply_id) == 32
        assert turn.history == ()
        assert (await conversations.messages("me", None, limit=10)).data == []


class TestAnswers:
    """Answers that were stored one by one, and what goes on from them."""

    async def respond(self, service: TurnService, question: str, answer: str, previous: str | None = None) -> Turn:
        turn = await begin(service, question, kind="response", create=False, stored=True, previous=previous)
        await finish(turn, Text(answer), END)
        return turn

    async def history(self, service: TurnService, previous: Turn) -> list[object]:
        then = await service.new_turn(opening(kind="response", create=False, stored=True, previous=previous.id))
        return [message.content for message in then.history]

    async def test_each_goes_on_from_the_one_it_names(self, service: TurnService) -> None:
        first = await self.respond(service, "1", "one")
        second = await self.respond(service, "2", "two", first.id)
        other = await self.respond(service, "2, too", "zwei", first.id)
        assert await self.history(service, second) == ["1", "one", "2", "two"]
        assert await self.history(service, other) == ["1", "one", "2, too", "zwei"]
        assert await self.history(service, first) == ["1", "one"]
        assert second.conversation_id is None

    async def test_what_is_given_once_more_is_another_item(self, service: TurnService) -> None:
        first = await self.respond(service, "1", "one")
        (output,) = (await service.answer(first.id, "me", "response")).output
        again = TurnRequest(
            owner="me", kind="response", stored=True, previous=first.id, input=[*output, *output, *input_items("2")]
        )
        turn = await service.new_turn(again)
        await turn.begin(head(turn))
        await turn.finish()
        assert await self.history(service, turn) == ["1", "one", "one", "one", "2"]
        ids = [item["id"] for item in (await service.answer(turn.id, "me", "response")).input]
        assert len({*ids, output[0]["id"]}) == 4

    async def test_two_may_go_on_from_one_at_once(self, service: TurnService) -> None:
        first = await self.respond(service, "1", "one")
        both = [
            await begin(service, question, kind="response", create=False, stored=True, previous=first.id)
            for question in ("a", "b")
        ]
        await asyncio.gather(*(finish(turn, Text("x"), END) for turn in both))
        assert [await self.history(service, turn) for turn in both] == [
            ["1", "one", question, "x"] for question in ("a", "b")
        ]

    async def test_one_that_is_being_written_is_not_gone_on_from(self, service: TurnService) -> None:
        turn = await begin(service, kind="response", create=False, stored=True)
        with pytest.raises(Conflict) as refused:
            await self.history(service, turn)
        assert refused.value.param == "previous_response_id"

    async def test_a_conversation_is_left_as_it_is(
        self, service: TurnService, conversations: ConversationService
    ) -> None:
        first = await store_turn(service, "1", "one", kind="response", stored=True)
        second = await self.respond(service, "2", "two", first.id)
        third = await self.respond(service, "3", "three", second.id)
        assert await self.history(service, third) == ["1", "one", "2", "two", "3", "three"]
        assert contents((await conversations.messages("me", None, limit=10)).data) == ["1", "one"]

    async def test_a_deleted_one_is_gone_and_what_came_after_it_stays(
        self, service: TurnService, database: Database
    ) -> None:
        first = await self.respond(service, "1", "one")
        second = await self.respond(service, "2", "two", first.id)
        third = await self.respond(service, "3", "three", second.id)
        await service.delete(second.id, "me", "response")
        with pytest.raises(NotFound):
            await self.history(service, second)
        assert await self.history(service, third) == ["1", "one", "3", "three"]
        for turn in (first, third):
            await service.delete(turn.id, "me", "response")
        async with database.read() as session:
            left = [await session.scalar(text(f"SELECT count(*) FROM {table}")) for table in TABLES]
        assert left == [0, 0, 0]

    async def test_one_of_a_conversation_leaves_its_items_there(
        self, service: TurnService, conversations: ConversationService
    ) -> None:
        turn = await store_turn(service, "1", "one", kind="response", stored=True)
        await service.delete(turn.id, "me", "response")
        with pytest.raises(NotFound):
            await service.answer(turn.id, "me", "response")
        assert contents((await conversations.messages("me", turn.conversation_id, limit=10)).data) == ["1", "one"]

    async def test_a_cancelled_turn_keeps_its_output_and_stops_its_writer(
        self, service: TurnService, database: Database
    ) -> None:
        turn = await begin(service, kind="response", create=False, stored=True)
        turn.add(Text("Hi"))
        await service.checkpoints.checkpoint()
        cancelled = await replica(database).cancel(turn.id, "me", "response")
        assert (cancelled.status, items.text(cancelled.output[0])) == ("cancelled", "Hi")
        turn.add(Text(" there"))
        await service.checkpoints.look_for_stopped()
        with pytest.raises(Stopped):
            turn.add(Text("!"))
        await turn.finish()
        stored = await service.answer(turn.id, "me", "response")
        assert (stored.status, items.text(stored.output[0])) == ("cancelled", "Hi there")

    async def test_what_is_over_is_not_cancelled(self, service: TurnService) -> None:
        turn = await self.respond(service, "1", "one")
        assert (await service.cancel(turn.id, "me", "response")).status == "completed"

    async def test_metadata_can_be_changed(self, service: TurnService) -> None:
        turn = await self.respond(service, "1", "one")
        await service.update_metadata(turn.id, "me", "response", {"a": "b"})
        assert (await service.answer(turn.id, "me", "response")).metadata == {"a": "b"}

    async def test_what_belongs_to_somebody_else_or_is_not_stored_does_not_exist(self, service: TurnService) -> None:
        mine = await self.respond(service, "1", "one")
        unstored = await store_turn(service, "1", "one", kind="response")
        for turn_id, owner in ((mine.id, "you"), (unstored.id, "me"), ("x", "me"), ("resp_" + "0" * 32, "me")):
            for call in (
                service.answer(turn_id, owner, "response"),
                service.update_metadata(turn_id, owner, "response", {}),
                service.cancel(turn_id, owner, "response"),
                service.delete(turn_id, owner, "response"),
                service.new_turn(TurnRequest(owner=owner, kind="response", stored=True, previous=turn_id)),
            ):
                with pytest.raises(NotFound):
                    await call
        with pytest.raises(NotFound):
            await service.answer(mine.id, "me", "chat.completion")


TABLES = ("conversations", "turns", "items")


@pytest.mark.both_databases
class TestWriters:
    async def test_one_of_two_at_once_wins(
        self, service: TurnService, conversations: ConversationService, new_database: NewDatabase
    ) -> None:
        first = await store_turn(service, "1", "one")
        databases = [new_database() for _ in range(2)]
        begun = [begin(replica(each), f"2.{n}", conversation=first.conversation_id) for n, each in enumerate(databases)]
        results = await asyncio.gather(*begun, return_exceptions=True)
        assert [type(result) for result in results if isinstance(result, Exception)] == [Conflict]
        assert len((await conversations.messages("me", None, limit=10)).data) == 4

    async def test_a_conversation_being_answered_is_refused(self, service: TurnService) -> None:
        turn = await begin(service)
        with pytest.raises(Conflict) as refused:
            await history(service, turn)
        assert refused.value.param == "conversation"

    async def test_nobody_writes_onto_a_history_that_is_not_the_newest(
        self, service: TurnService, conversations: ConversationService
    ) -> None:
        first = await store_turn(service, "1", "one")
        late = await service.new_turn(opening("2, too", conversation=first.conversation_id))
        await store_turn(service, "2", "two", first.conversation_id)
        with pytest.raises(Conflict):
            await late.begin(head(late))
        assert len((await conversations.messages("me", first.conversation_id, limit=10)).data) == 4

    async def test_nobody_writes_beside_an_answer_to_nothing_new(self, service: TurnService) -> None:
        first = await store_turn(service, "1", "one")
        late = await service.new_turn(opening("2", conversation=first.conversation_id))
        continued = await service.new_turn(TurnRequest(owner="me", conversation=first.conversation_id))
        await continued.begin(head(continued))
        with pytest.raises(Conflict):
            await late.begin(head(late))

    async def test_nobody_goes_on_from_what_is_deleted_meanwhile(
        self, service: TurnService, database: Database
    ) -> None:
        first = await store_turn(service, "1", "one", create=False, stored=True, kind="response")
        again: dict[str, object] = {"create": False, "stored": True, "kind": "response", "previous": first.id}
        await store_turn(service, "2", "two", **again)
        late = await service.new_turn(opening("3", **again))
        await service.delete(first.id, "me", "response")
        with pytest.raises(Conflict):
            await late.begin(head(late))
        named = await store_turn(service, "1", "one")
        late = await service.new_turn(opening("2", conversation=named.conversation_id))
        async with database.write() as session:
            found = repositories.of(session).items
            rows_of_turn = await found.of_turn(named.id)
            await found.delete(rows_of_turn[1:])
            assert named.conversation_id is not None
            again_one = {"id": "msg_again", **input_items("again")[0]}
            await found.add(
                item_rows.linked_rows([again_one], ItemPosition("me", named.conversation_id, 0.0, rows_of_turn[0].id))
            )
        with pytest.raises(Conflict):
            await late.begin(head(late))

    async def test_a_turn_that_was_refused_does_not_count_as_running(
        self, service: TurnService, database: Database
    ) -> None:
        first = await store_turn(service, "1", "one")
        late = await service.new_turn(opening("2, too", conversation=first.conversation_id))
        await store_turn(service, "2", "two", first.conversation_id)
        with pytest.raises(Conflict):
            await late.begin(head(late))
        await database.close()
        async with database.write():  # a checkpoint that wrote anything would wait for this for ever
            await asyncio.wait_for(service.checkpoints.checkpoint(), 10)

    async def test_a_conversation_deleted_in_between_is_not_found(
        self, service: TurnService, database: Database
    ) -> None:
        first = await store_turn(service, "1", "one")
        turn = await service.new_turn(opening("2", conversation=first.conversation_id))
        async with database.write() as session:
            await session.execute(text("DELETE FROM conversations"))
        with pytest.raises(NotFound):
            await turn.begin(head(turn))

    async def test_a_conversation_deleted_meanwhile_takes_the_answer_along(
        self, service: TurnService, database: Database
    ) -> None:
        turn = await begin(service)
        async with database.write() as session:
            await session.execute(text("DELETE FROM conversations"))
        await finish(turn, Text("Hi"), END)
        async with database.read() as session:
            assert await session.scalar(text("SELECT count(*) FROM items")) == 0


@pytest.mark.both_databases
class TestKeeping:
    async def test_a_checkpoint_saves_the_output(self, service: TurnService) -> None:
        turns = [await begin(service) for _ in range(3)]
        for n, turn in enumerate(turns):
            turn.add(Text(f"Hi {n}"))
        await service.checkpoints.checkpoint()
        assert [await text_and_status(service, turn) for turn in turns] == [
            (f"Hi {n}", "in_progress") for n in range(3)
        ]

    async def test_a_checkpoint_never_overwrites_the_end(self, service: TurnService) -> None:
        turn = await begin(service)
        turn.add(Text("Hi"))
        await asyncio.gather(
            finish(turn, Text(" there"), END),
            *(service.checkpoints.checkpoint() for _ in range(4)),
        )
        assert await text_and_status(service, turn) == ("Hi there", "completed")

    async def test_after_a_restart_answers_of_the_earlier_life_are_settled_at_once(self, database: Database) -> None:
        before, after = (TurnService(database, writer=this_writer()) for _ in range(2))
        turn = await begin(before)
        turn.add(Reasoning("Hm"))
        turn.add(Text("Hi"))
        await before.checkpoints.checkpoint()
        await after.start()
        await after.stop()
        stored = await answer(after, turn)
        assert await text_and_status(after, turn) == ("Hi", "incomplete")
        assert [item["status"] for item in stored.output[0]] == ["completed", "incomplete"]
        assert await history(after, turn) == ["Hello", "Hi"]

    async def test_answers_of_a_process_that_is_gone_are_settled_at_once(
        self, service: TurnService, database: Database
    ) -> None:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
        await process.wait()
        turn = await begin(TurnService(database, writer=of_process(process.pid)))
        await service.checkpoints.settle_abandoned()
        assert (await text_and_status(service, turn))[1] == "incomplete"

    async def test_answers_of_living_processes_are_left_alone(self, service: TurnService, database: Database) -> None:
        sibling = TurnService(database, writer=of_process(os.getppid()))
        turns = [await begin(owner) for owner in (service, sibling, replica(database))]
        await service.checkpoints.settle_abandoned()
        assert [(await text_and_status(service, turn))[1] for turn in turns] == ["in_progress"] * 3

    async def test_an_answer_without_a_sign_of_life_is_settled(self, service: TurnService, database: Database) -> None:
        silent, alive = [await begin(replica(database)) for _ in range(2)]
        for turn in (silent, alive):
            await make_older(database, turn, 14)
        await service.checkpoints.settle_abandoned()
        assert (await text_and_status(service, silent))[1] == "in_progress"
        await make_older(database, silent, 2)
        await service.checkpoints.settle_abandoned()
        assert (await text_and_status(service, silent))[1] == "incomplete"
        assert (await text_and_status(service, alive))[1] == "in_progress"

    async def test_a_checkpoint_is_a_sign_of_life(self, service: TurnService, database: Database) -> None:
        far = replica(database)
        turn = await begin(far)
        await make_older(database, turn, 100)
        await far.checkpoints.checkpoint()
        await service.checkpoints.settle_abandoned()
        assert (await text_and_status(service, turn))[1] == "in_progress"

    async def test_a_writer_that_was_given_up_too_early_has_the_last_word(
        self, service: TurnService, database: Database
    ) -> None:
        paused = replica(database)
        turn = await begin(paused)
        turn.add(Text("Hi"))
        await paused.checkpoints.checkpoint()
        await make_older(database, turn, 100)
        await service.checkpoints.settle_abandoned()
        assert await text_and_status(service, turn) == ("Hi", "incomplete")
        await finish(turn, Text(" there"), ToolCall("call_1", "wave", 0), END)
        assert await text_and_status(service, turn) == ("Hi there", "completed")
        assert [item["type"] for item in (await answer(service, turn)).output[0]] == ["message", "function_call"]

    async def test_what_was_not_used_for_long_is_forgotten(
        self, database: Database, conversations: ConversationService
    ) -> None:
        service = TurnService(database, writer=this_writer(), ttl_s=60)
        idempotency_key = IdempotencyKey("k", "d")
        turns = [
            await store_turn(service, text, "yes", idempotency_key=idempotency_key if text == "old" else None)
            for text in ("old", "new")
        ]
        turns.append(await begin(service, "running"))
        async with database.write() as session:
            statement = text("UPDATE conversations SET updated_at = updated_at - 61 WHERE id = :id")
            for turn in (turns[0], turns[2]):
                await session.execute(statement, {"id": turn.conversation_id})
            await session.execute(text("UPDATE idempotency_keys SET created_at = 0"))
        await TurnService(database, writer=this_writer()).checkpoints.delete_expired()
        assert (await service.open(opening("old", idempotency_key=idempotency_key))).id != turns[0].id
        assert len((await conversations.page("me", limit=5)).data) == 3
        await service.checkpoints.delete_expired()
        assert {each.id for each in (await conversations.page("me", limit=5)).data} == {
            turn.conversation_id for turn in turns[1:]
        }

    async def test_the_keeper_goes_on_after_an_error(
        self, database: Database, database_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        flaky = Flaky(database_url)
        service = TurnService(flaky, writer=this_writer(), checkpoint_s=0.001)
        turn = await begin(service)
        turn.add(Text("Hi"))
        flaky.failures = [ValueError("a fault"), ConnectionRefusedError("away")]
        flaky.recovered.clear()
        await service.start()
        await asyncio.wait_for(flaky.recovered.wait(), 30)
        await service.stop()
        await flaky.close()
        assert (await text_and_status(replica(database), turn))[0] == "Hi"
        assert "a fault" in caplog.text
        assert "not reachable: away" in caplog.text

    async def test_an_end_that_could_not_be_written_is_written_later(
        self, database: Database, database_url: str
    ) -> None:
        flaky = Flaky(database_url)
        service = TurnService(flaky, writer=this_writer())
        turn = await begin(service)
        flaky.failures = [ConnectionRefusedError("away")]
        with pytest.raises(Unavailable):
            await finish(turn, Text("Hi there"), END)
        await service.checkpoints.settle_abandoned()
        assert (await text_and_status(service, turn))[1] == "in_progress"
        await service.checkpoints.checkpoint()
        await flaky.close()
        assert await text_and_status(replica(database), turn) == ("Hi there", "completed")


@pytest.mark.both_databases
class TestTogether:
    """Turns that begin and end at the same moment."""

    async def test_all_of_them_are_two_transactions(
        self, database: Database, database_url: str, conversations: ConversationService
    ) -> None:
        counted = Flaky(database_url)
        service = TurnService(counted, writer=this_writer())
        old = await store_turn(service, "1", "one")
        counted.writes = 0
        options: list[dict[str, object]] = [{}, {}, {"conversation": old.conversation_id}, {"stored": True}]
        turns = [await service.new_turn(opening(f"{n}", **fields)) for n, fields in enumerate(options)]
        await asyncio.gather(*(turn.begin(head(turn)) for turn in turns))
        assert counted.writes == 1
        for turn in turns:
            turn.add(head(turn))
        await asyncio.gather(*(finish(turn, Text(f"said {n}"), END) for n, turn in enumerate(turns)))
        assert counted.writes == 2
        await counted.close()
        for n, turn in enumerate(turns):
            assert await text_and_status(replica(database), turn) == (f"said {n}", "completed")
            messages = (await conversations.messages("me", turn.conversation_id, limit=10)).data
            assert contents(messages)[-2:] == [f"{n}", f"said {n}"]

    async def test_one_of_two_in_a_conversation_wins_and_the_others_go_on(
        self, service: TurnService, conversations: ConversationService
    ) -> None:
        first, other = await store_turn(service, "1", "one"), await store_turn(service, "1", "one")
        to = [first, first, other]
        opened = [await service.new_turn(opening("2", conversation=turn.conversation_id)) for turn in to]
        results = await asyncio.gather(*(turn.begin(head(turn)) for turn in opened), return_exceptions=True)
        assert [type(result) for result in results] == [type(None), Conflict, type(None)]
        for turn in (first, other):
            assert len((await conversations.messages("me", turn.conversation_id, limit=10)).data) == 4

    async def test_a_key_that_comes_twice_is_written_once_and_the_others_go_on(
        self, service: TurnService, database: Database
    ) -> None:
        keys = [IdempotencyKey("k", "d"), None, IdempotencyKey("k", "d"), IdempotencyKey("l", "d")]
        results = await asyncio.gather(
            *(begin(service, "Hello", idempotency_key=idempotency_key) for idempotency_key in keys),
            return_exceptions=True,
        )
        refused = [result for result in results if isinstance(result, BaseException)]
        assert [getattr(each, "param", None) for each in refused] == ["Idempotency-Key"]
        async with database.read() as session:
            assert await session.scalar(text("SELECT count(*) FROM turns")) == 3
            assert await session.scalar(text("SELECT count(*) FROM items")) == 3

    async def test_one_that_the_database_refuses_is_alone_with_that(self, service: TurnService) -> None:
        turns = [await service.new_turn(opening("Hello", metadata=each)) for each in ({}, {"a": object()}, {})]
        results = await asyncio.gather(*(turn.begin(head(turn)) for turn in turns), return_exceptions=True)
        assert [result is None for result in results] == [True, False, True]
        assert not isinstance(results[1], Unavailable)
        assert [(await text_and_status(service, turns[n]))[1] for n in (0, 2)] == ["in_progress"] * 2

    async def test_a_store_that_is_away_is_away_for_all(self, database: Database, database_url: str) -> None:
        flaky = Flaky(database_url)
        service = TurnService(flaky, writer=this_writer())
        turns = [await begin(service, "Hello") for _ in range(3)]
        for turn in turns:
            turn.add(Text("Hi"))
            turn.add(END)
        flaky.failures = [ConnectionRefusedError("away")]
        results = await asyncio.gather(*(turn.finish() for turn in turns), return_exceptions=True)
        assert [type(result) for result in results] == [Unavailable] * 3
        await service.checkpoints.checkpoint()
        await flaky.close()
        assert [await text_and_status(replica(database), turn) for turn in turns] == [("Hi", "completed")] * 3

    async def test_one_that_leaves_while_it_is_written_is_ended(self, database: Database, database_url: str) -> None:
        slow = Slow(database_url)
        service = TurnService(slow, writer=this_writer())
        leaving, staying = [await service.new_turn(opening("Hello")) for _ in range(2)]
        begins = [asyncio.create_task(turn.begin(head(turn))) for turn in (leaving, staying)]
        await slow.reached.wait()
        begins[0].cancel()
        slow.go.set()
        done = await asyncio.gather(*begins, return_exceptions=True)
        await begin(service)  # comes after the leaving one's end
        assert [type(each) for each in done] == [asyncio.CancelledError, type(None)]
        assert await text_and_status(service, leaving) == ("", "incomplete")
        assert (await text_and_status(service, staying))[1] == "in_progress"
        await slow.close()

    async def test_one_that_leaves_before_it_is_written_leaves_nothing(
        self, database: Database, database_url: str
    ) -> None:
        slow = Slow(database_url)
        service = TurnService(slow, writer=this_writer())
        first, leaving = [await service.new_turn(opening("Hello")) for _ in range(2)]
        begins = [asyncio.create_task(first.begin(head(first)))]
        await slow.reached.wait()
        begins.append(asyncio.create_task(leaving.begin(head(leaving))))
        await asyncio.sleep(0)
        begins[1].cancel()
        slow.go.set()
        done = await asyncio.gather(*begins, return_exceptions=True)
        await begin(service)
        assert [type(each) for each in done] == [type(None), asyncio.CancelledError]
        with pytest.raises(NotFound):
            await answer(service, leaving)
        await slow.close()

    async def test_an_end_is_written_though_nobody_waits_for_it(self, database: Database, database_url: str) -> None:
        slow = Slow(database_url)
        slow.go.set()
        service = TurnService(slow, writer=this_writer())
        turns = [await begin(service) for _ in range(2)]
        slow.go.clear()
        slow.reached.clear()
        ends = [asyncio.create_task(finish(turn, Text("Hi"), END)) for turn in turns]
        await slow.reached.wait()
        ends[0].cancel()
        slow.go.set()
        await asyncio.gather(*ends, return_exceptions=True)
        assert [await text_and_status(service, turn) for turn in turns] == [("Hi", "completed")] * 2
        await slow.close()


@pytest.mark.both_databases
class TestTrouble:
    async def test_a_database_that_is_away_is_unavailable(self) -> None:
        database = Database(f"postgresql://parley@127.0.0.1:{free_port()}/parley")
        service = TurnService(database, writer=this_writer())
        await service.start()
        turn = await service.new_turn(opening("Hello"))
        for call in (
            turn.begin(head(turn)),
            service.new_turn(opening(conversation=f"conv_{uuid4().hex}")),
            ConversationService(database).messages("me", None, limit=1),
            service.answer(uuid4().hex, "me", "message"),
            service.ping(),
        ):
            with pytest.raises(Unavailable) as away:
                await call
            assert away.value.retry_after > 0
            assert "127.0.0.1" not in away.value.message
        assert (await service.new_turn(TurnRequest(owner="me"))).conversation_id is None
        await service.stop()
        await database.close()

    async def test_a_lock_held_too_long_by_others_is_unavailable(self, tmp_path: Path, sqlite_template: Path) -> None:
        path = shutil.copy(sqlite_template, tmp_path / "parley.db")
        database = Database(f"sqlite:///{path}", patience_s=0.01)
        turn = await TurnService(database, writer=this_writer()).new_turn(opening("Hello"))
        with closing(sqlite_connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(Unavailable):
                await turn.begin(head(turn))
        await turn.begin(head(turn))
        await database.close()

    async def test_a_killed_process_leaves_what_it_had_written(
        self, service: TurnService, conversations: ConversationService, database_url: str
    ) -> None:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", KILLED, database_url, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        conversation = (await process.stdout.readline()).decode().strip()
        process.kill()
        await process.communicate()
        await service.start()
        await service.stop()
        stored = (await conversations.messages("me", conversation, limit=10)).data
        assert [(message.content, message.status) for message in stored] == [
            ("Hello", "completed"),
            ("Hi the", "incomplete"),
        ]


KILLED = """
import asyncio, sys
from database.session import Database
from services.chat.events import Text
from services.turn_service import IdempotencyKey, TurnService, this_writer
from tests.test_services.test_turn_service import begin

async def main():
    service = TurnService(Database(sys.argv[1]), writer=this_writer())
    turn = await begin(service, "Hello")
    turn.add(Text("Hi the"))
    await service.checkpoints.checkpoint()
    print(turn.conversation_id, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


class Flaky(Database):
    """Fails to write as often as it is told to."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.failures: list[Exception] = []
        self.writes = 0
        self.recovered = asyncio.Event()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        if self.failures:
            raise self.failures.pop(0)
        async with super().write() as session:
            yield session
        self.writes += 1
        self.recovered.set()


class Slow(Database):
    """Lets nothing through until it may go."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.reached = asyncio.Event()
        self.go = asyncio.Event()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        self.reached.set()
        await self.go.wait()
        async with super().write() as session:
            yield session
