import pytest
from sqlalchemy import select, text
from sqlalchemy.exc import IntegrityError

from database.conversation_repository import RUNNING, ConversationRepository
from database.models import COMPLETED, IN_PROGRESS, Conversation, Message
from database.session import Database

EXPLAIN = {"sqlite": "EXPLAIN QUERY PLAN", "postgresql": "EXPLAIN"}


def conversation(id_: str, owner: str = "me", *, at: float = 0.0) -> Conversation:
    return Conversation(id=id_, owner=owner, created_at=at, updated_at=at)


def message(id_: str, position: int, parent: str | None = None, *, status: str = COMPLETED) -> Message:
    return Message(
        id=id_,
        conversation_id="c",
        parent_id=parent,
        position=position,
        role="user",
        content=id_,
        status=status,
        writer="host:1",
        created_at=0.0,
        updated_at=0.0,
    )


async def fill(database: Database, *messages: Message) -> None:
    async with database.write() as session:
        repository = ConversationRepository(session)
        await repository.add(conversation("c"))
        await repository.add_messages(messages)


async def test_messages_come_in_order_and_by_the_page(database: Database) -> None:
    await fill(database, *(message(f"m{n}", n) for n in range(5)))
    async with database.read() as session:
        repository = ConversationRepository(session)
        first = await repository.messages("c", limit=2)
        rest = await repository.messages("c", after=first[-1])
        newest = await repository.newest("c")
    assert [[found.position for found in page] for page in (first, rest)] == [[0, 1], [2, 3, 4]]
    assert newest is not None
    assert newest.id == "m4"


async def test_everybody_has_a_latest_conversation_of_their_own(database: Database) -> None:
    async with database.write() as session:
        repository = ConversationRepository(session)
        for new in (conversation("a", at=1), conversation("b", at=3), conversation("c", "you", at=4)):
            await repository.add(new)
        latest = await repository.latest("me")
        nobody = await repository.latest("nobody")
    assert latest is not None
    assert latest.id == "b"
    assert nobody is None


@pytest.mark.parametrize(
    "content", ["", "a NUL \x00, a lone surrogate \ud800, 你好", [{"type": "text", "text": "x"}], None]
)
async def test_content_comes_back_as_it_was(database: Database, content: str | list[dict[str, object]] | None) -> None:
    stored = message("m", 0)
    stored.content = content
    await fill(database, stored)
    async with database.read() as session:
        found = await ConversationRepository(session).message("m", "me")
    assert found is not None
    assert found.content == content


async def test_two_messages_never_share_a_position(database: Database) -> None:
    with pytest.raises(IntegrityError, match="position"):
        await fill(database, message("a", 0), message("b", 0))


@pytest.mark.parametrize("wrong", [message("a", 0, status="lost"), message("b", 0, parent="nobody")])
async def test_the_database_itself_refuses_nonsense(database: Database, wrong: Message) -> None:
    copy = message(wrong.id, 0, wrong.parent_id, status=wrong.status)
    with pytest.raises(IntegrityError):
        await fill(database, copy)


async def test_a_deleted_conversation_takes_its_messages_along(database: Database) -> None:
    await fill(database, message("a", 0), message("b", 1, parent="a"))
    async with database.write() as session:
        await session.execute(text("DELETE FROM conversations"))
    async with database.read() as session:
        assert (await session.execute(text("SELECT count(*) FROM messages"))).scalar() == 0


async def test_only_the_writer_finishes_and_only_once(database: Database) -> None:
    await fill(database, message("a", 0, status=IN_PROGRESS))
    async with database.write() as session:
        repository = ConversationRepository(session)
        for writer, said in (("host:2", "not mine"), ("host:1", "mine"), ("host:1", "again")):
            await repository.finish(
                "a", writer, status=COMPLETED, finish_reason="stop", usage=None, content=said, now=1.0
            )
        await repository.checkpoint({"a": "late"}, "host:1", 2.0)
    async with database.read() as session:
        found = await ConversationRepository(session).message("a", "me")
    assert found is not None
    assert (found.content, found.status) == ("mine", COMPLETED)


async def test_replies_in_progress_are_found_by_their_own_index(database: Database, backend: str) -> None:
    query = select(Message.id).where(RUNNING).compile()
    async with database.read() as session:
        if backend == "postgresql":
            await session.execute(text("SET LOCAL enable_seqscan = off"))  # the table is too small to be worth an index
        rows = await session.execute(text(f"{EXPLAIN[backend]} {query}"))
        assert "ix_messages_in_progress" in " ".join(str(row) for row in rows)
