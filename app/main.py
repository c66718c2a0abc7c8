"""The composition root: builds the app. No other module imports it."""

import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import Any

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from app.common import body_limits, configuration, errors, exits, log, model_configs, openapi
from app.common.allowed_hosts import AllowedHosts
from app.common.auth import AuthMiddleware, Keys
from app.common.batch_requests import BatchRequests
from app.common.compression import Decompress
from app.common.connection import Deadlines
from app.common.connections import ConnectionGate, Connections
from app.common.dependencies import ServerInfo, Services
from app.common.drain import Drain
from app.common.ignored import UnknownKeys
from app.common.middleware import AffinityHeader, BodyLimit, DrainGate, Options, Protocol, RequestLog
from app.common.pace import RequestPace
from app.common.page_guard import PageGuard
from app.common.reload import ReadSettings, Reloader
from app.common.routes import Routes
from app.common.security_headers import SecurityHeaders
from app.common.settings import ImageSettings, ServerSettings, Settings
from app.common.sse import Sse
from app.common.traced import Traced
from app.common.tracing import tracer_of
from app.controller import (
    adapter_controller,
    admin_controller,
    batch_controller,
    chat_controller,
    completion_controller,
    conversation_controller,
    embeddings_controller,
    file_controller,
    health_controller,
    message_controller,
    model_controller,
    page_controller,
    project_controller,
    rerank_controller,
    response_controller,
    status_controller,
    stored_completion_controller,
    tokenize_controller,
    upload_controller,
    usage_controller,
)
from app.lifespan import Lifespan
from app.process import Process
from app.spec import Server, loading
from app.spec.predict import PredictSpec
from app.spec.spec import Spec
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
from services.engine import build, warm_up
from services.engine.loading.generation_config import read_sampling_defaults
from services.event_source_service import EventSourceService
from services.fetch_service import Fetcher
from services.file_contents import FileContents
from services.file_service import FileLimits, FileService
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
from services.tracing import NO_TRACER, Tracer
from services.tree_service import TreeService
from services.turn_service import KeptRecords, TurnService, this_writer
from services.upload_service import UploadService
from services.usage_service import UsageService

logger = logging.getLogger(__name__)

DAY_S = 86_400
SEND_GRACE_S = 5.0  # in which a stalled stream ends by itself and logs why, before its connection is closed

CONTROLLERS = (
    admin_controller,
    chat_controller,
    status_controller,
    completion_controller,
    conversation_controller,
    message_controller,
    embeddings_controller,
    file_controller,
    upload_controller,
    batch_controller,
    rerank_controller,
    model_controller,
    adapter_controller,
    tokenize_controller,
    usage_controller,
    health_controller,
    page_controller,
    project_controller,
    stored_completion_controller,
    response_controller,
)


def create_app(
    settings: Settings,
    build: Callable[..., Any] = build,
    warm_up: Callable[[], None] = lambda: None,
    process: Process | None = None,
    environment: Mapping[str, str] = MappingProxyType({}),
    read_settings: ReadSettings | None = None,
) -> FastAPI:
    """`build` makes the engines, as `services.engine.build` does. `warm_up` runs beside the first requests. `process`
    exits if the start fails; without one the error is raised. `environment`: what OTEL_* variables are read from.
    `read_settings`: for administrators who have them reloaded; None: they cannot."""
    log.configure(settings.log.level, settings.log.format)
    tracer = tracer_of(environment)
    database = Database(settings.database.url)
    turns = TurnService(
        database,
        writer=this_writer(),
        checkpoint_s=settings.chat.checkpoint_s,
        ttl_s=settings.database.ttl_s,
        kept=KeptRecords(settings.records.usage_days * DAY_S, settings.records.audit_days * DAY_S),
    )
    services = _services(settings, turns, database, build, tracer, read_settings)
    routes = Routes()
    connections = _connections(settings.server)
    app = FastAPI(
        title="Parley",
        docs_url=None,  # FastAPI's own pages load their scripts from elsewhere
        redoc_url=None,
        lifespan=Lifespan(
            settings=settings,
            services=services,
            turns=turns,
            database=database,
            connections=connections,
            tracer=tracer,
            warm_up=warm_up,
            process=process,
        ),
        middleware=_middleware(settings, services, routes, connections, tracer),
    )
    app.state.services = services
    app.state.routes = routes
    app.state.connections = connections
    errors.install(app)
    for controller in CONTROLLERS:
        # not include_router, which rebuilds all routes at the first request and searches them twice for each one
        app.router.routes.extend(controller.router.routes)
    app.mount("/static", StaticFiles(directory=page_controller.STATIC))
    routes.add("Parley", app.routes)
    loading.install(app, _specs(settings), Server(services), routes)
    openapi.describe(app, routes, guarded=lambda: bool(services.keys))
    return app


def _connections(settings: ServerSettings) -> Connections:
    deadlines = Deadlines(
        headers=settings.headers_timeout_s,
        body=settings.body_timeout_s,
        body_rate=settings.body_rate,
        send=settings.send_timeout_s + SEND_GRACE_S,
    )
    return Connections(deadlines, settings.max_connections)


def _specs(settings: Settings) -> list[Spec[Any]]:
    path = settings.server.predict_path
    return [*([PredictSpec(path)] if path else []), *map(loading.load, settings.specs)]


def _services(
    settings: Settings,
    turns: TurnService,
    database: Database,
    build: Callable[..., Any],
    tracer: Tracer,
    read_settings: ReadSettings | None,
) -> Services:
    metrics = Metrics()
    manager = ModelManager(
        model_configs.configs(settings),
        aliases=settings.model.aliases,
        locate=partial(sources.locate, models_dir=settings.models_dir),
        build=build,
        recommended=partial(sources.recommended_sampling, models_dir=settings.models_dir, read=read_sampling_defaults),
    )
    metrics.watch(manager.stats)
    pulls = PullService(
        manager,
        allowed=settings.server.allowed_pulls,
        configure=partial(model_configs.pulled, settings=settings),
        workers=settings.server.workers * settings.server.replicas,
    )
    pulls.add_stored()
    streams = StreamService(database)
    secrets = SecretService(database, settings.server.secret)
    stored_keys, limits = KeyService(database), LimitService(database, this_writer())
    keys = Keys(settings.api_keys, settings.server.token_ttl_s, admin=settings.admin_key, stored=stored_keys)
    texts, contents = TextService(), _contents(settings)
    files = FileService(database, contents, FileLimits(settings.files.max_bytes, settings.files.max_total_bytes))
    chat = ChatService(
        manager,
        turns,
        metrics,
        limits,
        system_prompt=settings.chat.system_prompt,
        max_new_tokens=settings.chat.max_new_tokens,
        images=_images(settings.images),
        documents=_documents(settings, files),
        texts=texts,
        max_tokenize_chars=settings.server.max_tokenize_chars,
    )
    conversations = ConversationService(database)
    messages = MessageService(chat, turns, conversations)
    stored_responses = StoredResponseService(turns, streams, secrets)
    inputs = InputService(turns, secrets)
    compactions = CompactionService(chat, secrets, inputs)

    def is_writing() -> bool:
        """In the background, what no other process could go on with."""
        return streams.num_running > (len(streams.claimable()) if turns.has_others else 0)

    drain = Drain(settings.server.drain_s, interrupt=manager.stop, is_busy=is_writing, begin=pulls.interrupt)
    responses = ResponseService(
        chat,
        turns,
        streams,
        stored_responses,
        secrets,
        inputs,
        compactions,
        is_left_to_others=lambda: turns.has_others and (turns.num_queued >= AT_ONCE or manager.is_busy()),
    )
    claims = ClaimService(
        turns,
        streams,
        responses.go_on,
        is_open=lambda: not drain.has_begun,
        is_busy=manager.is_busy,
        caller_of=stored_keys.caller_of,
    )
    completions = CompletionService(manager, metrics, turns.usage, limits, texts)
    embeddings = EmbeddingService(manager, metrics, turns.usage, limits, texts)
    unknown_keys = UnknownKeys(strict=settings.strict)
    store, writer = Store(database), this_writer()
    upload_limits = FileLimits(settings.files.max_upload_bytes, settings.files.max_total_bytes)
    requests = BatchRequests(manager, chat, completions, embeddings, responses, unknown_keys, tracer)
    batch_worker = BatchWorker(
        Surroundings(
            store=store,
            writer=writer,
            files=files,
            results=WriteBatcher(partial(commit, store, writer)),
            capacity=Capacity(manager.num_running, settings.batches.parallel),
            answer=requests.answer,
            check_model=requests.check_model,
            limits=InputLimits(settings.batches.max_requests, settings.server.max_body_bytes),
        ),
        turns.checkpoints.lease,
        caller_of=stored_keys.caller_of,
        is_open=lambda: not drain.has_begun,
    )
    return Services(
        adapters=AdapterService(manager, workers=settings.server.workers * settings.server.replicas),
        event_sources=EventSourceService(messages, turns, streams),
        batches=BatchService(store, files, batch_worker),
        batch_worker=batch_worker,
        chat=chat,
        claims=claims,
        compactions=compactions,
        completions=completions,
        embeddings=embeddings,
        messages=messages,
        stored_completions=StoredCompletionService(turns),
        conversations=conversations,
        files=files,
        uploads=UploadService(database, contents, files, upload_limits),
        items=ItemService(database),
        search=SearchService(database),
        models=manager,
        catalogue=_catalogue(settings, manager),
        metrics=metrics,
        keys=keys,
        stored_keys=stored_keys,
        projects=ProjectService(database, stored_keys, manager),
        pulls=pulls,
        reloader=Reloader(settings, read_settings, keys, stored_keys, manager),
        usage=UsageService(database),
        limits=limits,
        drain=drain,
        sse=Sse(keepalive=settings.server.keepalive_s, send_timeout=settings.server.send_timeout_s),
        reranker=RerankService(manager, metrics, turns.usage, limits, texts),
        responses=responses,
        secrets=secrets,
        status=StatusService(manager, metrics),
        stored_responses=stored_responses,
        streams=streams,
        tokenizers=TokenizeService(manager, chat, texts, settings.server.max_tokenize_chars),
        trees=TreeService(database),
        unknown_keys=unknown_keys,
        info=ServerInfo(settings.chat.max_new_tokens, settings.model.device, settings.chat.system_prompt),
    )


def _contents(settings: Settings) -> FileContents:
    return FileContents(settings.files.folder or sqlite_file.beside(settings.database.url, "files"))


def _catalogue(settings: Settings, manager: ModelManager) -> CatalogueService:
    engine = settings.engine
    memory = partial(
        free_memory,
        settings.model.device,
        gpu_share=engine.gpu_memory_utilization,
        cpu_share=engine.cpu_memory_share,
    )
    return CatalogueService(manager, measure=partial(sources.measure, models_dir=settings.models_dir), memory=memory)


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


def _middleware(
    settings: Settings, services: Services, routes: Routes, connections: Connections, tracer: Tracer
) -> list[Middleware]:
    """Outermost first."""
    cors = settings.cors.origins
    max_bytes = body_limits.max_bytes(settings.server.max_body_bytes, settings.files.max_bytes)
    hosts = AllowedHosts(settings.server.host, settings.server.allowed_hosts)
    return [
        Middleware(Protocol, routes=routes),
        Middleware(SecurityHeaders),
        Middleware(RequestLog, metrics=services.metrics),
        *([] if tracer is NO_TRACER else [Middleware(Traced, tracer=tracer)]),
        Middleware(CORSMiddleware, allow_origins=cors, allow_methods=["*"], allow_headers=["*"], expose_headers=["*"]),
        Middleware(ConnectionGate, connections=connections),
        Middleware(RequestPace),
        Middleware(PageGuard, keys=services.keys, hosts=hosts, origins=cors),
        Middleware(Options, routes=routes),
        Middleware(AuthMiddleware, keys=services.keys),
        Middleware(AffinityHeader),
        Middleware(DrainGate, drain=services.drain),
        Middleware(BodyLimit, max_bytes=max_bytes),
        Middleware(Decompress, max_bytes=max_bytes),
    ]


def _read_settings() -> Settings:
    """Raises ValueError or OSError for models that cannot be served."""
    settings = configuration.read()
    sources.check(model_configs.configs(settings))
    return settings


def _app() -> FastAPI:
    """The app of this process. Wrong settings are reported before anything is opened."""
    with exits.in_one_line():
        settings = _read_settings()
        engines = model_configs.engines(settings)
        return create_app(
            settings,
            warm_up=partial(warm_up, engines),
            process=Process(),
            environment=os.environ,
            read_settings=_read_settings,
        )


app = _app()
