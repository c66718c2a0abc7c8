"""The repositories of one session."""

from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from database.audit_repository import AuditRepository
from database.batch_repository import BatchRepository
from database.conversation_repository import ConversationRepository
from database.file_repository import FileRepository
from database.idempotency_repository import IdempotencyRepository
from database.item_repository import ItemRepository
from database.key_repository import KeyRepository
from database.limit_repository import LimitRepository
from database.process_repository import ProcessRepository
from database.search_repository import SearchRepository
from database.secret_repository import SecretRepository
from database.stream_repository import StreamRepository
from database.turn_repository import TurnRepository
from database.upload_repository import UploadRepository
from database.usage_repository import UsageRepository


@dataclass(frozen=True, slots=True)
class Repositories:
    conversations: ConversationRepository
    items: ItemRepository
    turns: TurnRepository
    search: SearchRepository
    idempotency_keys: IdempotencyRepository
    streams: StreamRepository
    secrets: SecretRepository
    processes: ProcessRepository
    keys: KeyRepository
    audit: AuditRepository
    usage: UsageRepository
    limits: LimitRepository
    files: FileRepository
    batches: BatchRepository
    uploads: UploadRepository


def of(session: AsyncSession) -> Repositories:
    return Repositories(
        ConversationRepository(session),
        ItemRepository(session),
        TurnRepository(session),
        SearchRepository(session),
        IdempotencyRepository(session),
        StreamRepository(session),
        SecretRepository(session),
        ProcessRepository(session),
        KeyRepository(session),
        AuditRepository(session),
        UsageRepository(session),
        LimitRepository(session),
        FileRepository(session),
        BatchRepository(session),
        UploadRepository(session),
    )
