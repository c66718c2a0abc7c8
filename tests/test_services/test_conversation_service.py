import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from sqlite3 import connect as sqlite_connect
from uuid import uuid4

import pytest
from sqlalchemy import TextClause, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from database.conversation_repository import ConversationRepository
from database.models import COMPLETED, Message
from database.session import Database
from services.conversation_service import (
    ConversationService,
    NewItem,
    StoredMessage,
    Turn,
    in_our_words,
    this_writer,
)
from services.errors import Conflict, InvalidRequest, NotFound, Unavailable
from tests.databases import free_port

HELLO = [NewItem("user", "Hello")]


@pytest.fixture
def service(database: Database) -> ConversationService:
    return ConversationService(database, writer=this_writer())


def replica(database: Database) -> ConversationService:
    return ConversationService(database, writer="another-host:1")


async def say(
    service: ConversationService, asked: str, answer: str, conversation: str | None = None, owner: str = "me"
) -> Turn:
    turn = await service.open(conversation, owner, create=True)
    await turn.begin([NewItem("user", asked)], "a-model")
    await turn.finish(status="completed", finish_reason="stop", usage={"total_tokens": 2}, text=answer)
    return turn


async def make_older(database: Database, turn: Turn, seconds: float) -> None:
    async with database.write() as session:
        statement = text("UPDATE messages SET updated_at = updated_at - :seconds WHERE id = :id")
        await session.execute(statement, {"seconds": seconds, "id": turn.reply_id})


async def reply(service: ConversationService, turn: Turn) -> StoredMessage:
    return await service.message(turn.reply_id, "me")


class TestTurn:
    async def test_begin_is_seen_by_others_at_once(self, service: ConversationService, database_url: str) -> None:
        turn = await service.open(None, "me", create=True)
        await turn.begin([NewItem("system", "Be brief"), *HELLO], "a-model")
        other = Database(database_url)
        stored = await replica(other).messages("me", turn.conversation_id, limit=10)
        await other.close()
        assert [(message.role, message.content, message.status) for message in stored] == [
            ("system", "Be brief", "completed"),
            ("user", "Hello", "completed"),
            ("assistant", "", "in_progress"),
        ]
        assert (stored[-1].id, stored[-1].model) == (turn.reply_id, "a-model")
        assert [message.parent_id for message in stored] == [None, stored[0].id, stored[1].id]

    async def test_open_leaves_nothing_behind(self, service: ConversationService) -> None:
        turn = await service.open(None, "me", create=True)
        assert await service.messages("me", None, limit=10) == []
        with pytest.raises(NotFound):
            await service.open(turn.conversation_id, "me")

    async def test_history_is_what_was_said_oldest_first(self, service: ConversationService) -> None:
        turn = await say(service, "1", "one")
        await say(service, "2", "two", turn.conversation_id)
        third = await service.open(turn.conversation_id, "me")
        assert [message.content for message in third.history] == ["1", "one", "2", "two"]
        assert third.history[1].usage == {"total_tokens": 2}
        assert third.history[1].finish_reason == "stop"

    async def test_history_follows_the_newest_branch(self, service: ConversationService, database: Database) -> None:
        turn = await say(service, "1", "one")
        await say(service, "2", "two", turn.conversation_id)
        first = (await service.messages("me", turn.conversation_id, limit=1))[0]
        sibling = Message(
            id=uuid4().hex,
            conversation_id=first.conversation_id,
            parent_id=first.id,
            position=4,
            role="assistant",
            content="uno",
            status=COMPLETED,
            created_at=0.0,
            updated_at=0.0,
        )
        async with database.write() as session:
            await ConversationRepository(session).add_messages([sibling])
        third = await service.open(turn.conversation_id, "me")
        assert [message.content for message in third.history] == ["1", "uno"]

    async def test_history_has_no_replies_that_never_said_anything(self, service: ConversationService) -> None:
        turn = await service.open(None, "me", create=True)
        await turn.begin(HELLO, "a-model")
        await turn.finish(status="incomplete", finish_reason=None, usage=None, text="")
        then = await service.open(turn.conversation_id, "me")
        assert [message.content for message in then.history] == ["Hello"]
        await then.begin([NewItem("user", "Still there?")], "a-model")
        await then.finish(status="incomplete", finish_reason=None, usage=None, text="Ye")
        last = await service.open(turn.conversation_id, "me")
        assert [message.content for message in last.history] == ["Hello", "Still there?", "Ye"]

    async def test_only_the_first_finish_counts(self, service: ConversationService) -> None:
        turn = await say(service, "1", "one")
        await turn.finish(status="incomplete", finish_reason=None, usage=None, text="")
        stored = await reply(service, turn)
        assert (stored.content, stored.status) == ("one", "completed")

    async def test_finish_without_begin_writes_nothing(self, service: ConversationService) -> None:
        turn = await service.open(None, "me", create=True)
        await turn.finish(status="completed", finish_reason="stop", usage=None, text="one")
        assert await service.messages("me", None, limit=10) == []

    async def test_content_in_parts_comes_back_as_it_was(self, service: ConversationService) -> None:
        turn = await service.open(None, "me", create=True)
        await turn.begin([NewItem("user", [{"type": "text", "text": "你好 \x00"}]), NewItem("user", None)], "a-model")
        stored = await service.messages("me", turn.conversation_id, limit=10)
        assert [message.content for message in stored] == [[{"type": "text", "text": "你好 \x00"}], None, ""]

    async def test_a_turn_nobody_asked_to_remember(self, service: ConversationService) -> None:
        turn = await service.open(None, "me")
        await turn.begin(HELLO, "a-model")
        turn.said("Hi")
        await turn.finish(status="completed", finish_reason="stop", usage=None, text="Hi")
        assert turn.conversation_id is None
        assert len(turn.reply_id) == 32
        assert turn.history == ()
        assert await service.messages("me", None, limit=10) == []


class TestWriters:
    async def test_one_of_two_at_once_wins(self, service: ConversationService, database_url: str) -> None:
        first = await say(service, "1", "one")
        databases = [Database(database_url) for _ in range(2)]
        turns = [await replica(database).open(first.conversation_id, "me") for database in databases]
        begun = [turn.begin([NewItem("user", f"2.{n}")], "a-model") for n, turn in enumerate(turns)]
        results = await asyncio.gather(*begun, return_exceptions=True)
        for database in databases:
            await database.close()
        assert [type(result) for result in results if result is not None] == [Conflict]
        assert [message.position for message in await service.messages("me", None, limit=10)] == [0, 1, 2, 3]

    async def test_a_conversation_being_answered_is_refused(self, service: ConversationService) -> None:
        turn = await service.open(None, "me", create=True)
        await turn.begin(HELLO, "a-model")
        with pytest.raises(Conflict) as refused:
            await service.open(turn.conversation_id, "me")
        assert refused.value.param == "conversation"

    async def test_nobody_writes_onto_a_history_that_is_not_the_newest(self, service: ConversationService) -> None:
        first = await say(service, "1", "one")
        late = await service.open(first.conversation_id, "me")
        await say(service, "2", "two", first.conversation_id)
        with pytest.raises(Conflict):
            await late.begin([NewItem("user", "2, too")], "a-model")
        assert len(await service.messages("me", first.conversation_id, limit=10)) == 4

    async def test_a_turn_that_was_refused_does_not_count_as_running(
        self, service: ConversationService, database: Database
    ) -> None:
        first = await say(service, "1", "one")
        late = await service.open(first.conversation_id, "me")
        await say(service, "2", "two", first.conversation_id)
        with pytest.raises(Conflict):
            await late.begin(HELLO, "a-model")
        await database.close()
        async with database.write():  # a checkpoint that wrote anything would wait for this for ever
            await asyncio.wait_for(service.checkpoint(), 10)

    async def test_a_conversation_deleted_in_between_is_not_found(
        self, service: ConversationService, database: Database
    ) -> None:
        first = await say(service, "1", "one")
        turn = await service.open(first.conversation_id, "me")
        async with database.write() as session:
            await session.execute(text("DELETE FROM conversations"))
        with pytest.raises(NotFound):
            await turn.begin(HELLO, "a-model")

    async def test_a_position_taken_twice_is_a_conflict(self, service: ConversationService, database: Database) -> None:
        first = await say(service, "1", "one")
        statement = text("UPDATE messages SET position = 0 WHERE id = :id")
        with pytest.raises(Conflict), in_our_words():
            await _execute(database, statement.bindparams(id=first.reply_id))
        with pytest.raises(IntegrityError), in_our_words():
            await _execute(database, text("UPDATE messages SET status = 'lost'"))


class TestReading:
    async def test_what_belongs_to_somebody_else_does_not_exist(self, service: ConversationService) -> None:
        turn = await say(service, "1", "one")
        for conversation in (turn.conversation_id, f"conv_{uuid4().hex}", "x", "", "conv_\x00", "conv_' OR 1=1 --"):
            with pytest.raises(NotFound) as missing:
                await service.open(conversation, "you")
            assert missing.value.message == f"No conversation with id '{conversation}'"
            assert missing.value.param == "conversation"
            with pytest.raises(NotFound):
                await service.messages("you", conversation, limit=10)
        for message in (turn.reply_id, uuid4().hex, "x", "", "\x00"):
            with pytest.raises(NotFound):
                await service.message(message, "you")
        assert await service.messages("you", None, limit=10) == []

    async def test_messages_come_by_the_page(self, service: ConversationService) -> None:
        turn = await say(service, "1", "one")
        await say(service, "2", "two", turn.conversation_id)
        first = await service.messages("me", turn.conversation_id, limit=3)
        rest = await service.messages("me", turn.conversation_id, limit=3, after=first[-1].id)
        assert [message.content for message in first + rest] == ["1", "one", "2", "two"]

    async def test_a_place_that_is_not_in_the_conversation_is_refused(self, service: ConversationService) -> None:
        turn, other = await say(service, "1", "one"), await say(service, "2", "two")
        for after in (other.reply_id, uuid4().hex, "x"):
            with pytest.raises(InvalidRequest) as refused:
                await service.messages("me", turn.conversation_id, limit=3, after=after)
            assert refused.value.param == "after"

    async def test_without_a_name_the_one_used_last_is_meant(self, service: ConversationService) -> None:
        first = await say(service, "1", "one")
        await say(service, "2", "two")
        await say(service, "3", "three", owner="you")
        assert [message.content for message in await service.messages("me", None, limit=10)] == ["2", "two"]
        await say(service, "4", "four", first.conversation_id)
        assert (await service.messages("me", None, limit=10))[0].content == "1"


class TestKeeping:
    async def test_a_checkpoint_keeps_what_was_said(self, service: ConversationService) -> None:
        turns = [await service.open(None, "me", create=True) for _ in range(3)]
        for n, turn in enumerate(turns):
            await turn.begin(HELLO, "a-model")
            turn.said(f"Hi {n}")
        await service.checkpoint()
        stored = [await reply(service, turn) for turn in turns]
        assert [(message.content, message.status) for message in stored] == [
            (f"Hi {n}", "in_progress") for n in range(3)
        ]

    async def test_a_checkpoint_never_overwrites_the_end(self, service: ConversationService) -> None:
        turn = await service.open(None, "me", create=True)
        await turn.begin(HELLO, "a-model")
        turn.said("Hi")
        await asyncio.gather(
            turn.finish(status="completed", finish_reason="stop", usage=None, text="Hi there"),
            *(service.checkpoint() for _ in range(4)),
        )
        stored = await reply(service, turn)
        assert (stored.content, stored.status) == ("Hi there", "completed")

    async def test_after_a_restart_replies_of_the_earlier_life_are_settled_at_once(self, database: Database) -> None:
        before, after = (ConversationService(database, writer=this_writer()) for _ in range(2))
        turn = await before.open(None, "me", create=True)
        await turn.begin(HELLO, "a-model")
        turn.said("Hi")
        await before.checkpoint()
        await after.start()
        await after.stop()
        stored = await reply(after, turn)
        assert (stored.content, stored.status, stored.finish_reason) == ("Hi", "incomplete", None)
        assert (await after.open(turn.conversation_id, "me")).history[-1].content == "Hi"

    async def test_replies_of_a_process_that_is_gone_are_settled_at_once(
        self, service: ConversationService, database: Database
    ) -> None:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", "")
        await process.wait()
        dead = ConversationService(database, writer=this_writer().replace(str(os.getpid()), str(process.pid)))
        turn = await dead.open(None, "me", create=True)
        await turn.begin(HELLO, "a-model")
        await service.settle()
        assert (await reply(service, turn)).status == "incomplete"

    async def test_replies_of_living_processes_are_left_alone(
        self, service: ConversationService, database: Database
    ) -> None:
        sibling = ConversationService(database, writer=this_writer().replace(str(os.getpid()), str(os.getppid())))
        turns = []
        for owner in (service, sibling, replica(database)):
            turns.append(await owner.open(None, "me", create=True))
            await turns[-1].begin(HELLO, "a-model")
        await service.settle()
        assert [(await reply(service, turn)).status for turn in turns] == ["in_progress"] * 3

    async def test_a_reply_without_a_sign_of_life_is_settled(
        self, service: ConversationService, database: Database
    ) -> None:
        far = replica(database)
        silent, alive = [await far.open(None, "me", create=True) for _ in range(2)]
        for turn in (silent, alive):
            await turn.begin(HELLO, "a-model")
            await make_older(database, turn, 14)
        await service.settle()
        assert (await reply(service, silent)).status == "in_progress"
        await make_older(database, silent, 2)
        await service.settle()
        assert (await reply(service, silent)).status == "incomplete"
        assert (await reply(service, alive)).status == "in_progress"

    async def test_a_checkpoint_is_a_sign_of_life(self, service: ConversationService, database: Database) -> None:
        far = replica(database)
        turn = await far.open(None, "me", create=True)
        await turn.begin(HELLO, "a-model")
        await make_older(database, turn, 100)
        await far.checkpoint()
        await service.settle()
        assert (await reply(service, turn)).status == "in_progress"

    async def test_a_writer_that_was_given_up_too_early_has_the_last_word(
        self, service: ConversationService, database: Database
    ) -> None:
        paused = replica(database)
        turn = await paused.open(None, "me", create=True)
        await turn.begin(HELLO, "a-model")
        await make_older(database, turn, 100)
        await service.settle()
        await turn.finish(status="completed", finish_reason="stop", usage=None, text="Hi there")
        stored = await reply(service, turn)
        assert (stored.content, stored.status) == ("Hi there", "completed")

    async def test_the_keeper_goes_on_after_an_error(
        self, database: Database, database_url: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        flaky = Flaky(database_url)
        service = ConversationService(flaky, writer=this_writer(), checkpoint_s=0.001)
        turn = await service.open(None, "me", create=True)
        await turn.begin(HELLO, "a-model")
        turn.said("Hi")
        flaky.failures = [ValueError("a fault"), ConnectionRefusedError("away")]
        flaky.recovered.clear()
        await service.start()
        await asyncio.wait_for(flaky.recovered.wait(), 30)
        await service.stop()
        await flaky.close()
        assert (await reply(replica(database), turn)).content == "Hi"
        assert "a fault" in caplog.text
        assert "not reachable: away" in caplog.text

    async def test_an_end_that_could_not_be_written_is_written_later(
        self, database: Database, database_url: str
    ) -> None:
        flaky = Flaky(database_url)
        service = ConversationService(flaky, writer=this_writer())
        turn = await service.open(None, "me", create=True)
        await turn.begin(HELLO, "a-model")
        flaky.failures = [ConnectionRefusedError("away")]
        with pytest.raises(Unavailable):
            await turn.finish(status="completed", finish_reason="stop", usage=None, text="Hi there")
        await service.settle()
        assert (await reply(service, turn)).status == "in_progress"
        await service.checkpoint()
        await flaky.close()
        stored = await reply(replica(database), turn)
        assert (stored.content, stored.status) == ("Hi there", "completed")


class TestTrouble:
    async def test_a_database_that_is_away_is_unavailable(self) -> None:
        database = Database(f"postgresql://parley@127.0.0.1:{free_port()}/parley")
        service = ConversationService(database, writer=this_writer())
        await service.start()
        turn = await service.open(None, "me", create=True)
        for call in (
            turn.begin(HELLO, "a-model"),
            service.open(f"conv_{uuid4().hex}", "me"),
            service.messages("me", None, limit=1),
            service.message(uuid4().hex, "me"),
            service.ping(),
        ):
            with pytest.raises(Unavailable) as away:
                await call
            assert away.value.retry_after > 0
            assert "127.0.0.1" not in away.value.message
        assert (await service.open(None, "me")).conversation_id is None
        await service.stop()
        await database.close()

    async def test_a_lock_held_too_long_by_others_is_unavailable(self, tmp_path: Path, sqlite_template: Path) -> None:
        path = shutil.copy(sqlite_template, tmp_path / "parley.db")
        database = Database(f"sqlite:///{path}", patience_s=0.01)
        service = ConversationService(database, writer=this_writer())
        turn = await service.open(None, "me", create=True)
        with closing(sqlite_connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(Unavailable):
                await turn.begin(HELLO, "a-model")
        await turn.begin(HELLO, "a-model")
        await database.close()

    async def test_a_killed_process_leaves_what_it_had_written(
        self, service: ConversationService, database_url: str
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
        stored = await service.messages("me", conversation, limit=10)
        assert [(message.content, message.status) for message in stored] == [
            ("Hello", "completed"),
            ("Hi the", "incomplete"),
        ]


KILLED = """
import asyncio, sys
from database.session import Database
from services.conversation_service import ConversationService, NewItem, this_writer

async def main():
    service = ConversationService(Database(sys.argv[1]), writer=this_writer())
    turn = await service.open(None, "me", create=True)
    await turn.begin([NewItem("user", "Hello")], "a-model")
    turn.said("Hi the")
    await service.checkpoint()
    print(turn.conversation_id, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


class Flaky(Database):
    """Fails to write as often as it is told to."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.failures: list[Exception] = []
        self.recovered = asyncio.Event()

    @asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        if self.failures:
            raise self.failures.pop(0)
        async with super().write() as session:
            yield session
        self.recovered.set()


async def _execute(database: Database, statement: TextClause) -> None:
    async with database.write() as session:
        await session.execute(statement)
