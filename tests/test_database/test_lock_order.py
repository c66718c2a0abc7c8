"""Deletions and writers do not deadlock."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from sqlalchemy import text

from database import repositories
from database.models import COMPLETED, Conversation, Turn
from database.repositories import Repositories
from database.session import Database

Step = Callable[[Repositories], Coroutine[Any, Any, object]]

WAITING = text("SELECT count(*) FROM pg_locks WHERE NOT granted")
# In the order of a cascading deletion, against the order of ids.
TURNS = {"t9": "a", "t5": "a", "t1": "b"}
WRITERS: dict[str, Step] = {
    "a beat": lambda these: these.turns.lock_shared(list(TURNS)),
    "a checkpoint": lambda these: these.turns.checkpoint({id: [] for id in TURNS}, "host:1", 0.0),
}
DELETIONS: dict[str, Step] = {
    "all of an owner": lambda these: these.conversations.delete_batch("me", limit=9),
    "what is old": lambda these: these.conversations.delete_unused(9.0, limit=9),
    "one conversation": lambda these: these.conversations.delete("a"),
}


async def fill(database: Database) -> None:
    async with database.write() as session:
        these = repositories.of(session)
        for id in ("a", "b"):
            new = Conversation(id=id, owner="me", created_at=0.0, updated_at=0.0)
            await these.conversations.add([new])
        for id, conversation in TURNS.items():
            times = {"created_at": 0.0, "updated_at": 0.0, "completed_at": 0.0}
            facts = {"kind": "message", "owner": "me", "status": COMPLETED, "stored": False, "model": "m"}
            await these.turns.add([Turn(id=id, conversation_id=conversation, writer="host:1", **facts, **times)])


async def in_a_transaction(database: Database, step: Step) -> None:
    async with database.write() as session:
        await step(repositories.of(session))


@pytest.mark.parametrize("deletion", DELETIONS.values(), ids=list(DELETIONS))
@pytest.mark.parametrize("write", WRITERS.values(), ids=list(WRITERS))
async def test_deletion_and_writer_do_not_deadlock(database: Database, deletion: Step, write: Step) -> None:
    """The deletion waits at the first turn by id; in another order it would have locked later ones already."""
    await fill(database)
    first = "t5" if deletion is DELETIONS["one conversation"] else "t1"
    async with database.write() as session:
        is_sqlite = (await session.connection()).dialect.name == "sqlite"
        await repositories.of(session).turns.lock_shared([first])
        deleting = asyncio.create_task(in_a_transaction(database, deletion))
        while not is_sqlite and await session.scalar(WAITING) < 1:
            pass
        writing = asyncio.create_task(in_a_transaction(database, write))
        while not is_sqlite and not writing.done() and await session.scalar(WAITING) < 2:
            pass
    await asyncio.gather(writing, deleting)  # in a deadlock one of them would fail
