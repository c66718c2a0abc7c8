"""What several processes do to one conversation at the same moment."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import pytest
from sqlalchemy import text

from database import repositories
from database.session import Database
from services.chat import items
from services.chat.events import Text, ToolCall
from services.conversation_service import ConversationService
from services.errors import NotFound
from services.history.answer import Answer
from services.history.turn import Turn
from services.item_service import ItemService, PageQuery
from services.turn_service import IdempotencyKey, TurnService, this_writer
from tests.databases import waited_for
from tests.test_services.test_turn_service import (
    END,
    Flaky,
    Slow,
    begin,
    contents,
    finish,
    history,
    input_items,
    make_older,
    opening,
    replica,
    store_turn,
    text_and_status,
)

pytestmark = pytest.mark.both_databases

ALONE: dict[str, object] = {"kind": "response", "create": False, "stored": True}


@pytest.fixture
def store(database: Database) -> Database:
    """Each of the two databases, where others keep to SQLite."""
    return database


async def at_once(database: Database, turn: Turn, *calls: Coroutine[Any, Any, object]) -> list[object]:
    """Each has begun, and waits for the turn's conversation, before one of them goes on."""
    async with database.write() as session:
        thread = await session.scalar(text("SELECT conversation_id FROM turns WHERE id = :id"), {"id": turn.id})
        await repositories.of(session).conversations.touch([thread], time.time())
        tasks = [asyncio.create_task(call) for call in calls]
        await waited_for(session, len(calls))
    return await asyncio.gather(*tasks, return_exceptions=True)


class TestOneAnswer:
    async def test_deleted_twice_takes_nothing_else_along(self, turns: TurnService, database: Database) -> None:
        first = await store_turn(turns, "1", "one", **ALONE)
        second = await store_turn(turns, "2", "two", **ALONE, previous=first.id)
        results = await at_once(database, first, *(turns.delete(first.id, "me", "response") for _ in range(2)))
        assert {type(each) for each in results} == {type(None), NotFound}
        assert (await turns.answer(second.id, "me", "response")).status == "completed"

    async def test_what_is_deleted_meanwhile_is_not_found(self, turns: TurnService, database: Database) -> None:
        turn = await store_turn(turns, "1", "one", **ALONE)
        changes: list[Coroutine[Any, Any, object]] = [
            turns.delete(turn.id, "me", "response"),
            turns.update_metadata(turn.id, "me", "response", {"a": "b"}),
            turns.cancel(turn.id, "me", "response"),
        ]
        deleted, *others = await at_once(database, turn, *changes)
        assert deleted is None
        for each in others:  # it came before the deletion, or after it
            assert isinstance(each, NotFound) or (isinstance(each, Answer) and each.id == turn.id)
        with pytest.raises(NotFound):
            await turns.answer(turn.id, "me", "response")

    async def test_asked_again_twice_is_taken_back_once(self, turns: TurnService, database: Database) -> None:
        idempotency_key = IdempotencyKey("k", "d")
        first = await begin(turns, "1", **ALONE, idempotency_key=idempotency_key)
        await finish(first, Text("on"))
        second = await store_turn(turns, "2", "two", **ALONE, previous=first.id)
        again = [turns.open(opening("1", **ALONE, idempotency_key=idempotency_key)) for _ in range(2)]
        for each in await at_once(database, first, *again):
            assert not isinstance(each, BaseException)
        assert (await turns.answer(second.id, "me", "response")).status == "completed"

    async def test_one_that_becomes_whole_meanwhile_is_not_taken_back(
        self, turns: TurnService, database: Database, database_url: str
    ) -> None:
        idempotency_key = IdempotencyKey("k", "d")
        paused, slow = replica(database), Slow(database_url)
        turn = await begin(paused, idempotency_key=idempotency_key)
        turn.add(Text("Hi"))
        await make_older(database, turn, 100)
        await turns.checkpoints.settle_abandoned()
        again = asyncio.create_task(replica(slow).open(opening("Hello", idempotency_key=idempotency_key)))
        await slow.reached.wait()
        await finish(turn, Text(" there"), END)
        slow.go.set()
        await again
        await slow.close()
        assert await text_and_status(turns, turn) == ("Hi there", "completed")

    async def test_a_repeated_end_is_one_write(self, database_url: str) -> None:
        counted = Flaky(database_url)
        turn = await begin(TurnService(counted, writer=this_writer()))
        turn.add(Text("Hi"))
        turn.add(END)
        counted.writes = 0
        await asyncio.gather(turn.finish(), turn.finish())
        assert counted.writes == 1
        assert await text_and_status(replica(counted), turn) == ("Hi", "completed")
        await counted.close()


class TestOneConversation:
    async def test_used_at_the_last_moment_is_not_forgotten(
        self, database: Database, conversations: ConversationService
    ) -> None:
        turns = TurnService(database, writer=this_writer(), ttl_s=60)
        turn = await store_turn(turns, "1", "one")
        async with database.write() as session:
            await session.execute(text("UPDATE conversations SET updated_at = updated_at - 61"))
        await at_once(database, turn, turns.checkpoints.delete_expired())
        assert len((await conversations.page("me", limit=5)).data) == 1

    async def test_items_that_come_twice_are_there_once(self, turns: TurnService, database: Database) -> None:
        turn = await store_turn(turns, "1", "one")
        assert turn.conversation_id is not None
        new = [{"id": "msg_new", **input_items("2")[0]}]
        added = (ItemService(database).add(turn.conversation_id, "me", new, IdempotencyKey("k", "d")) for _ in range(2))
        one, other = await at_once(database, turn, *added)
        assert one == other
        assert await history(turns, turn) == ["1", "one", "2"]


class TestLastWord:
    """Of a writer whose turn was given up or cancelled elsewhere."""

    async def test_comes_too_late_when_others_have_gone_on(self, turns: TurnService, database: Database) -> None:
        turn = await begin(turns, "1")
        await replica(database).cancel(turn.id, "me", "message")
        await store_turn(turns, "2", "two", turn.conversation_id)
        await finish(turn, Text("one"), END)
        assert await history(turns, turn) == ["1", "2", "two"]
        assert await text_and_status(turns, turn) == ("", "cancelled")

    async def test_comes_too_late_while_others_go_on(
        self, turns: TurnService, conversations: ConversationService, database: Database
    ) -> None:
        turn = await begin(turns, "1")
        await replica(database).cancel(turn.id, "me", "message")
        then = await begin(turns, conversation=turn.conversation_id)
        await finish(turn, Text("one"), END)
        await finish(then, Text("two"), END)
        stored = (await conversations.messages("me", turn.conversation_id, limit=10)).data
        assert contents(stored) == ["1", "Hello", "two"]

    @pytest.mark.parametrize("index", [0, 1], ids=["question", "answer"])
    async def test_brings_nothing_back_that_was_deleted(
        self, turns: TurnService, database: Database, index: int
    ) -> None:
        turn = await begin(turns, "1")
        assert turn.conversation_id is not None
        turn.add(Text("on"))
        await turns.checkpoints.checkpoint()
        await replica(database).cancel(turn.id, "me", "message")
        kept = ItemService(database)
        there = (await kept.page(turn.conversation_id, "me", PageQuery(limit=5, order="asc"))).data
        await kept.delete(turn.conversation_id, there[index]["id"], "me")
        await finish(turn, Text("e"), ToolCall("call_1", "wave", 0), END)
        rest = (await kept.page(turn.conversation_id, "me", PageQuery(limit=5, order="asc"))).data
        assert rest == [each for each in there if each is not there[index]]
        assert items.text(there[1:]) == "on"
        await turns.checkpoints.checkpoint()  # and nothing is left to be tried again
        assert turn.completed_at is not None
