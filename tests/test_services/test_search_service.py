import pytest
from sqlalchemy import text

from database.session import Database
from services.conversation_service import ConversationService
from services.errors import InvalidRequest
from services.search_service import SearchService
from services.turn_service import TurnService
from tests.test_services.test_turn_service import store_turn

pytestmark = pytest.mark.both_databases


@pytest.fixture
def store(database: Database) -> Database:
    """Each of the two databases, where others keep to SQLite."""
    return database


@pytest.fixture
def search(database: Database) -> SearchService:
    return SearchService(database)


async def found(search: SearchService, query: str, owner: str = "me") -> list[str]:
    return [each.snippet for each in (await search.find(owner, query, limit=20)).data]


@pytest.mark.parametrize(
    ("query", "texts"),
    [
        ("sea", ["The SEA is wide", "Tell me of the sea"]),
        ("wide sea", ["The SEA is wide"]),
        ("cafe", ["Un café, s'il vous plaît"]),
        ("大海", ["我爱大海和天空"]),
        ("海大", []),
        ("大海 天空", ["我爱大海和天空"]),
        ("sea-wide", []),
        ('wide" OR "nothing', []),
        ("nothing", []),
    ],
)
async def test_all_words_of_a_query_are_found(
    turns: TurnService, search: SearchService, query: str, texts: list[str]
) -> None:
    await store_turn(turns, "Tell me of the sea", "The SEA is wide")
    await store_turn(turns, "Un café, s'il vous plaît", "我爱大海和天空")
    assert await found(search, query) == texts


async def test_items_of_other_owners_are_not_found(turns: TurnService, search: SearchService) -> None:
    await store_turn(turns, "sea ownerme", "sea", owner="you")
    assert await found(search, "sea") == []
    assert len(await found(search, "sea", "you")) == 2


async def test_it_says_where_it_was_found(turns: TurnService, search: SearchService) -> None:
    named = await store_turn(turns, "sea", "wide")
    alone = await store_turn(turns, "sea", "deep", create=False, stored=True, kind="response")
    newest, oldest = (await search.find("me", "sea", limit=20)).data
    assert (oldest.conversation_id, oldest.answer_id) == (named.conversation_id, None)
    assert (newest.conversation_id, newest.answer_id) == (None, alone.id)
    assert newest.item["role"] == "user"


async def test_they_come_by_the_page(turns: TurnService, search: SearchService) -> None:
    for n in range(3):
        await store_turn(turns, f"sea {n}", "no")
    first = await search.find("me", "sea", limit=2)
    rest = await search.find("me", "sea", limit=2, after=first.last_id)
    assert [each.snippet for each in first.data + rest.data] == ["sea 2", "sea 1", "sea 0"]
    assert (first.has_more, rest.has_more) == (True, False)
    for after in ("x", f"{first.last_id}x", "\0"):
        with pytest.raises(InvalidRequest):
            await search.find("me", "sea", limit=2, after=after)
    with pytest.raises(InvalidRequest):
        await search.find("you", "sea", limit=2, after=first.last_id)


async def test_a_long_text_is_shown_around_the_word(turns: TurnService, search: SearchService) -> None:
    await store_turn(turns, "a " * 500 + "Séa" + " b" * 500, "no")
    (snippet,) = await found(search, "sea")
    assert "a Séa b" in snippet
    assert snippet.startswith("…")
    assert snippet.endswith("…")
    assert len(snippet) < 210


@pytest.mark.parametrize("query", ["", "  ", "!?", "__"])
async def test_a_query_without_words_is_refused(search: SearchService, query: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        await search.find("me", query, limit=1)
    assert refused.value.param == "query"


async def test_what_is_deleted_is_found_no_more(
    turns: TurnService, search: SearchService, database: Database, backend: str
) -> None:
    turn = await store_turn(turns, "sea", "sea")
    assert turn.conversation_id is not None
    await ConversationService(database).delete(turn.conversation_id, "me")
    assert await found(search, "sea") == []
    if backend == "sqlite":  # nothing is left in its index either
        async with database.write() as session:
            await session.execute(text("INSERT INTO items_found (items_found) VALUES ('integrity-check')"))
            left = await session.scalar(text("SELECT count(*) FROM items_found WHERE items_found MATCH 'sea'"))
        assert left == 0


async def test_a_very_long_text_is_stored_and_found_by_its_beginning(turns: TurnService, search: SearchService) -> None:
    words = " ".join(f"w{n}" for n in range(200_000))
    await store_turn(turns, "sea " + words + "x" * 5000, "no")
    assert len(await found(search, "sea w100")) == 1
