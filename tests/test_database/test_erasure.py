"""Deleted data is erased from the files."""

import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from database import admin_models, batch_models, file_models, upload_models, usage_models
from database.migration import upgrade
from database.models import Base, Process, Secret, StreamBatch
from database.session import Database
from services.conversation_service import ConversationService
from services.history.idempotency import IdempotencyKey
from services.item_service import ItemService, PageQuery
from services.turn_service import TurnService
from tests.test_services.test_turn_service import store_turn

SECRET = "xylophonequartz"
ASKED = f"My {SECRET} is {SECRET}. " * 200
ANSWERED = f"So, {SECRET}! " * 200


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "history"


@pytest.fixture
async def database(folder: Path) -> Any:
    url = f"sqlite:///{folder}/parley.db"
    await upgrade(url)
    database = Database(url)
    yield database
    await database.close()


@pytest.fixture
def turns(database: Database) -> TurnService:
    return TurnService(database, writer="host:1")


def is_on_disk(folder: Path) -> bool:
    return any(SECRET.encode() in file.read_bytes().lower() for file in folder.iterdir())


async def erase(database: Database) -> None:
    while await database.erase():
        pass


async def conversation(turns: TurnService, database: Database) -> None:
    turn = await store_turn(turns, ASKED, ANSWERED)
    assert turn.conversation_id
    await ConversationService(database).delete(turn.conversation_id, "me")


async def stored_response(turns: TurnService, database: Database) -> None:
    idempotency_key = IdempotencyKey("key", "digest")
    turn = await store_turn(
        turns, ASKED, ANSWERED, create=False, stored=True, kind="response", idempotency_key=idempotency_key
    )
    async with database.write() as session:
        session.add(StreamBatch(turn_id=turn.id, number=0, events=ANSWERED))
    await turns.delete(turn.id, "me", "response")


async def item(turns: TurnService, database: Database) -> None:
    conversations, items = ConversationService(database), ItemService(database)
    secret = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": ASKED}]}
    made = await conversations.create("me", [secret])
    (found,) = (await items.page(made.id, "me", PageQuery(limit=2, order="asc"))).data
    await items.delete(made.id, found["id"], "me")


async def old_ones(turns: TurnService, database: Database) -> None:
    await store_turn(turns, ASKED, ANSWERED)
    await TurnService(database, writer="host:1", ttl_s=-1).checkpoints.delete_expired()


Deletion = Callable[[TurnService, Database], Awaitable[None]]


@pytest.mark.parametrize("deletion", [conversation, stored_response, item, old_ones])
async def test_deleted_data_is_erased_from_the_files(
    turns: TurnService, database: Database, folder: Path, deletion: Deletion
) -> None:
    for n in range(20):
        await store_turn(turns, f"filler {n}", "indeed")
    await deletion(turns, database)
    assert is_on_disk(folder)  # else the test could not fail
    await erase(database)
    assert not is_on_disk(folder)


async def test_erasing_does_not_wait_for_readers(turns: TurnService, database: Database, folder: Path) -> None:
    await erase(database)
    await store_turn(turns, ASKED, ANSWERED)
    with closing(sqlite3.connect(folder / "parley.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        assert reader.execute("SELECT count(*) FROM items").fetchone() == (2,)
        await conversation(turns, database)
        assert await database.erase()
        await store_turn(turns, "And now?", "Now")
    await erase(database)
    assert not await database.erase()


async def test_no_row_is_left(database: Database) -> None:
    turns = TurnService(database, writer="host:1")
    kept: dict[str, Any] = {"create": False, "stored": True, "kind": "response"}
    named = await store_turn(turns, ASKED, ANSWERED, idempotency_key=IdempotencyKey("key", "digest"))
    first = await store_turn(turns, ASKED, ANSWERED, **kept, idempotency_key=IdempotencyKey("another", "digest"))
    second = await store_turn(turns, "And?", ANSWERED, **kept, previous=first.id)
    async with database.write() as session:
        session.add(StreamBatch(turn_id=first.id, number=0, events=ANSWERED))
    assert all(await counts(database))
    assert named.conversation_id
    await ConversationService(database).delete(named.conversation_id, "me")
    for turn in (first, second):
        await turns.delete(turn.id, "me", "response")
    assert not any(await counts(database))


# what the server's processes share, and what is not of conversations: keys, usage, files and batches
OTHERS = {
    table.__tablename__
    for module in (admin_models, usage_models, file_models, batch_models, upload_models)
    for table in vars(module).values()
    if isinstance(table, type) and issubclass(table, Base) and table is not Base
} | {Secret.__tablename__, Process.__tablename__}


async def counts(database: Database) -> list[int]:
    """Rows of each table of conversations and their answers."""
    async with database.read() as session:
        tables = [table for table in Base.metadata.sorted_tables if table.name not in OTHERS]
        return [await session.scalar(select(func.count()).select_from(table)) or 0 for table in tables]
