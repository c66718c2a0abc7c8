import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from database import repositories
from database.models import COMPLETED, IN_PROGRESS, Conversation, Item, Turn
from database.session import Database
from database.turn_repository import LockedTurn, TurnResult


def conversation(id_: str, owner: str = "me", *, at: float = 0.0, listed: bool = True) -> Conversation:
    return Conversation(id=id_, owner=owner, created_at=at, updated_at=at, listed=listed)


def item(id_: str, parent: str | None = None, *, turn: str | None = None) -> Item:
    return Item(
        id=id_,
        owner="me",
        conversation_id="c",
        parent_id=parent,
        turn_id=turn,
        type="message",
        data={"id": id_},
        terms=id_,
        created_at=0.0,
    )


def turn(id_: str, *, status: str = IN_PROGRESS) -> Turn:
    return Turn(
        id=id_,
        kind="message",
        owner="me",
        conversation_id="c",
        status=status,
        stored=False,
        model="m",
        writer="host:1",
        created_at=0.0,
        updated_at=0.0,
    )


async def fill(database: Database, *items: Item, turns: tuple[Turn, ...] = ()) -> None:
    async with database.write() as session:
        repository = repositories.of(session)
        await repository.conversations.add([conversation("c")])
        await repository.turns.add(turns)
        await repository.items.add(items)


async def test_items_are_paged_in_order(database: Database) -> None:
    await fill(database, *(item(f"i{n}") for n in range(5)))
    async with database.read() as session:
        repository = repositories.of(session).items
        first = await repository.page("c", limit=2)
        rest = await repository.page("c", after=first[-1])
        back = await repository.page("c", order="desc", after=first[-1])
        newest = await repository.newest("c")
    assert [[found.id for found in page] for page in (first, rest, back)] == [["i0", "i1"], ["i2", "i3", "i4"], ["i0"]]
    assert newest is not None
    assert newest.id == "i4"


async def test_children_of_deleted_items_are_reparented(database: Database) -> None:
    await fill(database, item("a"), item("b", "a"), item("c", "b"), item("d", "c"), item("e", "b"))
    async with database.write() as session:
        repository = repositories.of(session).items
        await repository.delete(await repository.get_many("c", ["b", "c"]))
        left = await repository.page("c")
    async with database.read() as session:
        left = await repositories.of(session).items.page("c")
    assert [(found.id, found.parent_id) for found in left] == [("a", None), ("d", "a"), ("e", "a")]


async def test_latest_conversation_is_the_owners(database: Database) -> None:
    new = [
        conversation("a", at=1),
        conversation("b", at=3),
        conversation("c", "you", at=4),
        conversation("d", at=5, listed=False),
    ]
    async with database.write() as session:
        repository = repositories.of(session).conversations
        await repository.add(new)
        latest = await repository.latest("me")
        nobody = await repository.latest("nobody")
    assert latest is not None
    assert latest.id == "b"
    assert nobody is None


@pytest.mark.parametrize(
    "data", [{"text": "a NUL \x00, a lone surrogate \ud800, 你好"}, {"b": 1, "a": [None, 1.5, {}]}]
)
async def test_items_are_returned_unchanged(database: Database, data: dict[str, object]) -> None:
    stored = item("i")
    stored.data = data
    await fill(database, stored)
    async with database.read() as session:
        found = await repositories.of(session).items.get("c", "i")
    assert found is not None
    assert list(found.data.items()) == list(data.items())


async def test_item_ids_are_unique_per_conversation(database: Database) -> None:
    with pytest.raises(IntegrityError):
        await fill(database, item("a"), item("a"))
    await fill(database, item("a"))
    other = item("a")
    other.conversation_id = "d"
    async with database.write() as session:
        await repositories.of(session).conversations.add([conversation("d")])
        await repositories.of(session).items.add([other])


async def test_any_number_of_keys_can_be_looked_up(database: Database) -> None:
    await fill(database, item("a"), item("b"))
    places = [("c", "a"), *(("c", f"nothing{n}") for n in range(33_000)), ("d", "a"), ("c", "b")]
    async with database.read() as session:
        assert await repositories.of(session).items.existing_keys(places) == {("c", "a"), ("c", "b")}


@pytest.mark.parametrize("wrong", ["status", "parent", "turn"])
async def test_database_enforces_constraints(database: Database, wrong: str) -> None:
    turns = (turn("t", status="lost" if wrong == "status" else COMPLETED),)
    with pytest.raises(IntegrityError):
        await fill(
            database,
            item("a", "nobody" if wrong == "parent" else None, turn="nothing" if wrong == "turn" else None),
            turns=turns,
        )


async def test_deleting_a_conversation_deletes_its_rows(database: Database) -> None:
    await fill(database, item("a", turn="t"), item("b", "a", turn="t"), turns=(turn("t"),))
    async with database.write() as session:
        await repositories.of(session).conversations.delete("c")
    async with database.read() as session:
        left = [await session.scalar(text(f"SELECT count(*) FROM {table}")) for table in ("turns", "items")]
    assert left == [0, 0]


async def test_only_the_writer_finishes_a_turn_and_only_once(database: Database) -> None:
    await fill(database, turns=(turn("t"),))
    async with database.write() as session:
        repository = repositories.of(session).turns
        found = [await repository.lock_unfinished(["t"], "host:2"), await repository.lock_unfinished(["t"], "host:1")]
        await repository.finish({"t": TurnResult(COMPLETED, [], [], {"prompt_tokens": 1}, 1.0)})
        again = await repository.lock_unfinished(["t"], "host:1")
        await repository.checkpoint({"t": [[{"late": True}]]}, "host:1", 2.0)
    assert [*found, again] == [{}, {"t": LockedTurn(IN_PROGRESS, None)}, {}]
    async with database.read() as session:
        stored = await repositories.of(session).turns.get("t", "me")
    assert stored is not None
    assert (stored.status, stored.partial_output, stored.usage, stored.writer) == (
        COMPLETED,
        None,
        {"prompt_tokens": 1},
        None,
    )
