"""Dependencies of routes, as annotated types. All are async: FastAPI runs sync ones in a thread."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, Request

from app.common import auth, drain, ignored, reload, sse
from services import callers
from services.adapter_service import AdapterService
from services.batch_service import BatchService, BatchWorker
from services.catalogue_service import CatalogueService
from services.chat_service import ChatService
from services.claim_service import ClaimService
from services.compaction_service import CompactionService
from services.completion_service import CompletionService
from services.conversation_service import ConversationService
from services.embedding_service import EmbeddingService
from services.event_source_service import EventSourceService
from services.file_service import FileService
from services.item_service import ItemService
from services.key_service import KeyService
from services.limit_service import LimitService
from services.message_service import MessageService
from services.metrics_service import Metrics
from services.model_service import ModelManager
from services.project_service import ProjectService
from services.pull_service import PullService
from services.rerank_service import RerankService
from services.response_service import ResponseService
from services.search_service import SearchService
from services.secret_service import SecretService
from services.status_service import StatusService
from services.stored_completion_service import StoredCompletionService
from services.stored_response_service import StoredResponseService
from services.stream_service import StreamService
from services.tokenize_service import TokenizeService
from services.tree_service import TreeService
from services.upload_service import UploadService
from services.usage_service import UsageService


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """Settings that GET /chat shows."""

    max_new_tokens: int | None
    device: str
    system_prompt: str | None


@dataclass(frozen=True, slots=True)
class Services:
    """Built once in `app.main`, kept as `app.state.services`."""

    adapters: AdapterService
    batches: BatchService
    batch_worker: BatchWorker
    event_sources: EventSourceService
    chat: ChatService
    claims: ClaimService
    compactions: CompactionService
    completions: CompletionService
    embeddings: EmbeddingService
    messages: MessageService
    stored_completions: StoredCompletionService
    conversations: ConversationService
    files: FileService
    uploads: UploadService
    items: ItemService
    search: SearchService
    models: ModelManager
    catalogue: CatalogueService
    metrics: Metrics
    keys: auth.Keys
    stored_keys: KeyService
    projects: ProjectService
    pulls: PullService
    reloader: reload.Reloader
    usage: UsageService
    limits: LimitService
    drain: drain.Drain
    sse: sse.Sse
    reranker: RerankService
    responses: ResponseService
    secrets: SecretService
    status: StatusService
    stored_responses: StoredResponseService
    streams: StreamService
    tokenizers: TokenizeService
    trees: TreeService
    unknown_keys: ignored.UnknownKeys
    info: ServerInfo


def _service(name: str) -> Callable[[Request], Awaitable[Any]]:
    async def dependency(request: Request) -> Any:
        return getattr(request.app.state.services, name)

    return dependency


async def _caller(request: Request) -> callers.Caller:
    caller: callers.Caller = request.state.caller  # set by AuthMiddleware
    return caller


Adapters = Annotated[AdapterService, Depends(_service("adapters"))]
Batches = Annotated[BatchService, Depends(_service("batches"))]
EventSources = Annotated[EventSourceService, Depends(_service("event_sources"))]
Caller = Annotated[callers.Caller, Depends(_caller)]
Admin = Annotated[callers.Caller, Depends(auth.require_admin)]
Chat = Annotated[ChatService, Depends(_service("chat"))]
Compactions = Annotated[CompactionService, Depends(_service("compactions"))]
Completions = Annotated[CompletionService, Depends(_service("completions"))]
Conversations = Annotated[ConversationService, Depends(_service("conversations"))]
Uploads = Annotated[UploadService, Depends(_service("uploads"))]
Files = Annotated[FileService, Depends(_service("files"))]
Items = Annotated[ItemService, Depends(_service("items"))]
Search = Annotated[SearchService, Depends(_service("search"))]
Drain = Annotated[drain.Drain, Depends(_service("drain"))]
Embedder = Annotated[EmbeddingService, Depends(_service("embeddings"))]
Keys = Annotated[auth.Keys, Depends(_service("keys"))]
MetricsExport = Annotated[Metrics, Depends(_service("metrics"))]
Messages = Annotated[MessageService, Depends(_service("messages"))]
Models = Annotated[ModelManager, Depends(_service("models"))]
Catalogue = Annotated[CatalogueService, Depends(_service("catalogue"))]
StoredCompletions = Annotated[StoredCompletionService, Depends(_service("stored_completions"))]
Info = Annotated[ServerInfo, Depends(_service("info"))]
Projects = Annotated[ProjectService, Depends(_service("projects"))]
Pulls = Annotated[PullService, Depends(_service("pulls"))]
Reloader = Annotated[reload.Reloader, Depends(_service("reloader"))]
Reranker = Annotated[RerankService, Depends(_service("reranker"))]
Responses = Annotated[ResponseService, Depends(_service("responses"))]
Secrets = Annotated[SecretService, Depends(_service("secrets"))]
StoredResponses = Annotated[StoredResponseService, Depends(_service("stored_responses"))]
Status = Annotated[StatusService, Depends(_service("status"))]
Sse = Annotated[sse.Sse, Depends(_service("sse"))]
UsageReports = Annotated[UsageService, Depends(_service("usage"))]
Trees = Annotated[TreeService, Depends(_service("trees"))]
Tokenizers = Annotated[TokenizeService, Depends(_service("tokenizers"))]
UnknownKeys = Annotated[ignored.UnknownKeys, Depends(_service("unknown_keys"))]
