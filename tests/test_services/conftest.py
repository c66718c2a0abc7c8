import pytest

from database.session import Database
from services.conversation_service import ConversationService
from services.turn_service import TurnService, this_writer


@pytest.fixture
def turns(database: Database) -> TurnService:
    return TurnService(database, writer=this_writer())


@pytest.fixture
def conversations(database: Database) -> ConversationService:
    return ConversationService(database)
