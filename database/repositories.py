"""The repositories of one session."""

from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from database.conversation_repository import ConversationRepository
from database.idempotency_repository import IdempotencyRepository
from database.item_repository import ItemRepository
from database.search_repository import SearchRepository
from database.secret_repository import SecretRepository
from database.stream_repository import StreamRepository
from database.turn_repository import TurnRepository


@dataclass(frozen=True, slots=True)
class Repositories:
    conversations: ConversationRepository
    items: ItemRepository
    turns: TurnRepository
    search: SearchRepository
    idempotency_keys: IdempotencyRepository
    streams: StreamRepository
    secrets: SecretRepository


def of(session: AsyncSession) -> Repositories:
    return Repositories(
        ConversationRepository(session),
        ItemRepository(session),
        TurnRepository(session),
        SearchRepository(session),
        IdempotencyRepository(session),
        StreamRepository(session),
        SecretRepository(session),
    )
