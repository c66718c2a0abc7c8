"""Builds the services from the settings: what they share first, then all of them."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from app.common import model_configs
from app.common.auth import Keys
from app.common.batch_requests import BatchRequests
from app.common.dependencies import ServerInfo, Services
from app.common.drain import Drain
from app.common.ignored import UnknownKeys
from app.common.reload import ReadSettings, Reloader
from app.common.settings import ImageSettings, Settings
from app.common.sse import Sse
from database import sqlite_file
from database.session import Database
from services.adapter_service import AdapterService
from services.batch_service import BatchService, BatchWorker
from services.batches.capacity import Capacity
from services.batches.input_file import InputLimits
from services.batches.results import commit
from services.batches.run import Surroundings
from services.catalogue_service import CatalogueService
from services.chat_service import ChatService
from services.claim_service import AT_ONCE, ClaimService
from services.compaction_service import CompactionService
from services.completion_service import CompletionService
from services.conversation_service import ConversationService
from services.document_service import DocumentService
from services.embedding_service import EmbeddingService
from services.engine.loading.generation_config import read_sampling_defaults
from services.event_source_service import EventSourceService
from services.fetch_service import Fetcher
from services.file_contents import FileContents
from services.file_service import FileLimits, FileService
from services.file_stores.base import FileStore
from services.file_stores.folder import FolderStore
from services.history.store import Store
from services.history.write_batcher import WriteBatcher
from services.image_service import ImageService
from services.input_service import InputService
from services.item_service import ItemService
from services.key_service import KeyService
from services.limit_service import LimitService
from services.message_service import MessageService
from services.metrics_service import Metrics
from services.model_service import ModelManager
from services.models import sources
from services.models.memory import free_memory
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
from services.text_service import TextService
from services.tokenize_service import TokenizeService
from services.tracing import Tracer
from services.tree_service import TreeService
from services.turn_service import TurnService
from services.upload_service import UploadService
from services.usage_service import UsageService


@dataclass(frozen=True, slots=True, kw_only=True)
class Foundation:
    """What the services share."""

    settings: Settings
    database: Database
    turns: TurnService
    writer: str
    tracer: Tracer
    metrics: Metrics
    models: ModelManager
    texts: TextService
    contents: FileContents
    files: FileService
    streams: StreamService
    secrets: SecretService
    stored_keys: KeyService
    keys: Keys
    limits: LimitService
    unknown_keys: UnknownKeys


def foundation(
    settings: Settings, database: Database, turns: TurnService, writer: str, tracer: Tracer, build: Callable[..., Any]
) -> Foundation:
    metrics, models = Metrics(), _models(settings, build)
    metrics.watch(models.stats)
    contents, stored_keys = FileContents(_file_store(settings)), KeyService(database)
    return Foundation(
        settings=settings,
        database=database,
        turns=turns,
        writer=writer,
        tracer=tracer,
        metrics=metrics,
        models=models,
        texts=TextService(),
        contents=contents,
        files=FileService(database, contents, FileLimits(settings.files.max_bytes, settings.files.max_total_bytes)),
        streams=StreamService(database),
        secrets=SecretService(database, settings.server.secret),
        stored_keys=stored_keys,
        keys=Keys(settings.api_keys, settings.server.token_ttl_s, admin=settings.admin_key, stored=stored_keys),
        limits=LimitService(database, writer),
        unknown_keys=UnknownKeys(strict=settings.strict),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What computes answers, and ends with the process."""

    chat: ChatService
    compactions: CompactionService
    completions: CompletionService
    embeddings: EmbeddingService
    pulls: PullService
    drain: Drain
    responses: ResponseService
    stored_responses: StoredResponseService


def _answers(base: Foundation) -> Answers:
    chat, pulls = _chat(base), _pulls(base)
    inputs = InputService(base.turns, base.secrets)
    compactions = CompactionService(chat, base.secrets, inputs)
    stored_responses = StoredResponseService(base.turns, base.streams, base.secrets)
    measured = (base.models, base.metrics, base.turns.usage, base.limits, base.texts)
    return Answers(
        chat=chat,
        compactions=compactions,
        completions=CompletionService(*measured),
        embeddings=EmbeddingService(*measured),
        pulls=pulls,
        drain=_drain(base, pulls),
        responses=ResponseService(
            chat,
            base.turns,
            base.streams,
            stored_responses,
            base.secrets,
            inputs,
            compactions,
            is_left_to_others=lambda: (
                base.turns.has_others and (base.turns.num_queued >= AT_ONCE or base.models.is_busy())
            ),
        ),
        stored_responses=stored_responses,
    )


def build_services(base: Foundation, read_settings: ReadSettings | None) -> Services:
    settings, database, turns, models = base.settings, base.database, base.turns, base.models
    answers = _answers(base)
    store = Store(database)
    conversations = ConversationService(database)
    messages = MessageService(answers.chat, turns, conversations)
    batch_worker = _batch_worker(base, answers, store)
    return Services(
        adapters=AdapterService(models, workers=_num_processes(settings)),
        event_sources=EventSourceService(messages, turns, base.streams),
        batches=BatchService(store, base.files, batch_worker),
        batch_worker=batch_worker,
        chat=answers.chat,
        claims=_claims(base, answers),
        compactions=answers.compactions,
        completions=answers.completions,
        embeddings=answers.embeddings,
        messages=messages,
        stored_completions=StoredCompletionService(turns),
        conversations=conversations,
        files=base.files,
        uploads=_uploads(base),
        items=ItemService(database),
        search=SearchService(database),
        models=models,
        catalogue=_catalogue(settings, models),
        metrics=base.metrics,
        keys=base.keys,
        stored_keys=base.stored_keys,
        projects=ProjectService(database, base.stored_keys, models),
        pulls=answers.pulls,
        reloader=Reloader(settings, read_settings, base.keys, base.stored_keys, models),
        usage=UsageService(database),
        limits=base.limits,
        drain=answers.drain,
        sse=Sse(keepalive=settings.server.keepalive_s, send_timeout=settings.server.send_timeout_s),
        reranker=RerankService(models, base.metrics, turns.usage, base.limits, base.texts),
        responses=answers.responses,
        secrets=base.secrets,
        status=StatusService(models, base.metrics),
        stored_responses=answers.stored_responses,
        streams=base.streams,
        tokenizers=TokenizeService(models, answers.chat, base.texts, settings.server.max_tokenize_chars),
        trees=TreeService(database),
        unknown_keys=base.unknown_keys,
        info=ServerInfo(settings.chat.max_new_tokens, settings.model.device, settings.chat.system_prompt),
    )


def _models(settings: Settings, build: Callable[..., Any]) -> ModelManager:
    return ModelManager(
        model_configs.configs(settings),
        aliases=settings.model.aliases,
        locate=partial(sources.locate, models_dir=settings.models_dir),
        build=build,
        recommended=partial(sources.recommended_sampling, models_dir=settings.models_dir, read=read_sampling_defaults),
    )


def _chat(base: Foundation) -> ChatService:
    settings = base.settings
    return ChatService(
        base.models,
        base.turns,
        base.metrics,
        base.limits,
        system_prompt=settings.chat.system_prompt,
        max_new_tokens=settings.chat.max_new_tokens,
        images=_images(settings.images),
        documents=_documents(settings, base.files),
        texts=base.texts,
        max_tokenize_chars=settings.server.max_tokenize_chars,
    )


def _pulls(base: Foundation) -> PullService:
    settings = base.settings
    pulls = PullService(
        base.models,
        allowed=settings.server.allowed_pulls,
        configure=partial(model_configs.pulled, settings=settings),
        workers=_num_processes(settings),
    )
    pulls.add_stored()
    return pulls


def _drain(base: Foundation, pulls: PullService) -> Drain:
    turns, streams = base.turns, base.streams

    def is_writing() -> bool:
        """In the background, what no other process could go on with."""
        return streams.num_running > (len(streams.claimable()) if turns.has_others else 0)

    drain_s = base.settings.server.drain_s
    return Drain(drain_s, interrupt=base.models.stop, is_busy=is_writing, begin=pulls.interrupt)


def _claims(base: Foundation, answers: Answers) -> ClaimService:
    return ClaimService(
        base.turns,
        base.streams,
        answers.responses.go_on,
        is_open=lambda: not answers.drain.has_begun,
        is_busy=base.models.is_busy,
        caller_of=base.stored_keys.caller_of,
    )


def _batch_worker(base: Foundation, answers: Answers, store: Store) -> BatchWorker:
    settings, models, writer = base.settings, base.models, base.writer
    requests = BatchRequests(
        models,
        answers.chat,
        answers.completions,
        answers.embeddings,
        answers.responses,
        base.unknown_keys,
        base.tracer,
    )
    surroundings = Surroundings(
        store=store,
        writer=writer,
        files=base.files,
        results=WriteBatcher(partial(commit, store, writer)),
        capacity=Capacity(models.num_running, settings.batches.parallel),
        answer=requests.answer,
        check_model=requests.check_model,
        limits=InputLimits(settings.batches.max_requests, settings.server.max_body_bytes),
    )
    return BatchWorker(
        surroundings,
        base.turns.checkpoints.lease,
        caller_of=base.stored_keys.caller_of,
        is_open=lambda: not answers.drain.has_begun,
    )


def _num_processes(settings: Settings) -> int:
    return settings.server.workers * settings.server.replicas


def _file_store(settings: Settings) -> FileStore:
    if settings.files.url is None:
        return FolderStore(settings.files.folder or sqlite_file.beside(settings.database.url, "files"))
    from services.file_stores.object_store import ObjectStore  # fsspec is loaded only where it is needed

    return ObjectStore(settings.files.url, settings.files.options)


def _uploads(base: Foundation) -> UploadService:
    limits = FileLimits(base.settings.files.max_upload_bytes, base.settings.files.max_total_bytes)
    return UploadService(base.database, base.contents, base.files, limits)


def _catalogue(settings: Settings, models: ModelManager) -> CatalogueService:
    engine = settings.engine
    memory = partial(
        free_memory,
        settings.model.device,
        gpu_share=engine.gpu_memory_utilization,
        cpu_share=engine.cpu_memory_share,
    )
    return CatalogueService(models, measure=partial(sources.measure, models_dir=settings.models_dir), memory=memory)


def _documents(settings: Settings, files: FileService) -> DocumentService:
    hosts, max_bytes = settings.images.hosts, settings.files.max_input_bytes
    fetcher = Fetcher(hosts, max_bytes=max_bytes, timeout_s=settings.images.timeout_s, accept="*/*")
    return DocumentService(files, max_bytes=max_bytes, fetcher=fetcher if hosts else None)


def _images(settings: ImageSettings) -> ImageService:
    fetcher = Fetcher(settings.hosts, max_bytes=settings.max_bytes, timeout_s=settings.timeout_s)
    return ImageService(
        max_images=settings.max_images,
        max_bytes=settings.max_bytes,
        max_pixels=settings.max_pixels,
        max_held_bytes=settings.max_held_bytes,
        fetcher=fetcher if settings.hosts else None,
    )
