from uuid import uuid4

import pytest

from database.session import Database
from services.conversation_service import ConversationService
from services.errors import InvalidRequest, NotFound
from services.turn_service import TurnService
from tests.test_services.test_turn_service import contents, opening, store_turn


@pytest.fixture
def store(database: Database) -> Database:
    """Each of the two databases, where others keep to SQLite."""
    return database


@pytest.fixture
def service(database: Database) -> ConversationService:
    return ConversationService(database)


class TestMessages:
    async def test_what_belongs_to_somebody_else_does_not_exist(
        self, turns: TurnService, service: ConversationService
    ) -> None:
        turn = await store_turn(turns, "1", "one")
        for conversation in (turn.conversation_id, f"conv_{uuid4().hex}", "x", "", "conv_\x00", "conv_' OR 1=1 --"):
            with pytest.raises(NotFound) as missing:
                await turns.open(opening(conversation=conversation, owner="you"))
            assert missing.value.message == f"No conversation with id '{conversation}'"
            assert missing.value.param == "conversation"
            with pytest.raises(NotFound):
                await service.messages("you", conversation, limit=10)
        for message in (turn.id, uuid4().hex, "x", "", "\x00"):
            with pytest.raises(NotFound):
                await turns.answer(message, "you", "message")
        assert (await service.messages("you", None, limit=10)).data == []

    async def test_they_come_by_the_page(self, turns: TurnService, service: ConversationService) -> None:
        turn = await store_turn(turns, "1", "one")
        await store_turn(turns, "2", "two", turn.conversation_id)
        first = (await service.messages("me", turn.conversation_id, limit=3)).data
        rest = (await service.messages("me", turn.conversation_id, limit=3, after=first[-1].id)).data
        assert contents([*first, *rest]) == ["1", "one", "2", "two"]

    async def test_a_place_that_is_not_in_the_conversation_is_refused(
        self, turns: TurnService, service: ConversationService
    ) -> None:
        turn, other = await store_turn(turns, "1", "one"), await store_turn(turns, "2", "two")
        for after in (other.id, uuid4().hex, "x"):
            with pytest.raises(InvalidRequest) as refused:
                await service.messages("me", turn.conversation_id, limit=3, after=after)
            assert refused.value.param == "after"

    async def test_without_a_name_the_one_used_last_is_meant(
        self, turns: TurnService, service: ConversationService
    ) -> None:
        first = await store_turn(turns, "1", "one")
        await store_turn(turns, "2", "two")
        await store_turn(turns, "3", "three", owner="you")
        await store_turn(turns, "5", "five", create=False, stored=True, kind="response")
        assert contents((await service.messages("me", None, limit=10)).data) == ["2", "two"]
        await store_turn(turns, "4", "four", first.conversation_id)
        assert contents((await service.messages("me", None, limit=10)).data)[0] == "1"
