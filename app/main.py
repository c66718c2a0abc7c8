"""The composition root: builds the app. No other module imports it."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from fastapi import FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware

from app.common import configuration, errors, exits, log, model_configs, openapi
from app.common.allowed_hosts import AllowedHosts
from app.common.auth import AuthMiddleware, Keys
from app.common.compression import Decompress
from app.common.connection import Deadlines
from app.common.connections import ConnectionGate, Connections
from app.common.dependencies import ServerInfo, Services
from app.common.drain import Drain
from app.common.ignored import UnknownKeys
from app.common.middleware import BodyLimit, DrainGate, Options, Protocol, RequestLog
from app.common.page_guard import PageGuard
from app.common.routes import Routes
from app.common.security_headers import SecurityHeaders
from app.common.settings import ImageSettings, ServerSettings, Settings
from app.common.sse import Sse
from app.controller import (
    chat_controller,
    completion_controller,
    conversation_controller,
    embeddings_controller,
    health_controller,
    message_controller,
    model_controller,
    page_controller,
    rerank_controller,
    response_controller,
    status_controller,
    stored_completion_controller,
    tokenize_controller,
)
from app.lifespan import Lifespan
from app.process import Process
from app.spec import Server, loading
from app.spec.predict import PredictSpec
from app.spec.spec import Spec
from database.session import Database
from services.catalogue_service import CatalogueService
from services.chat_service import ChatService
from services.compaction_service import CompactionService
from services.completion_service import CompletionService
from services.conversation_service import ConversationService
from services.embedding_service import EmbeddingService
from services.engine import build, warm_up
from services.engine.loading.generation_config import read_sampling_defaults
from services.event_source_service import EventSourceService
from services.fetch_service import Fetcher
from services.image_service import ImageService
from services.input_service import InputService
from services.item_service import ItemService
from services.message_service import MessageService
from services.metrics_service import Metrics
from services.model_service import ModelManager
from services.models import sources
from services.rerank_service import RerankService
from services.response_service import ResponseService
from services.search_service import SearchService
from services.secret_service import SecretService
from services.stored_completion_service import StoredCompletionService
from services.stored_response_service import StoredResponseService
from services.stream_service import StreamService
from services.text_service import TextService
from services.tokenize_service import TokenizeService
from services.tree_service import TreeService
from services.turn_service import TurnService, this_writer

logger = logging.getLogger(__name__)

SEND_GRACE_S = 5.0  # in which a stalled stream ends by itself and logs why, before its connection is closed

CONTROLLERS = (
    chat_controller,
    status_controller,
    completion_controller,
    conversation_controller,
    message_controller,
    embeddings_controller,
    rerank_controller,
    model_controller,
    tokenize_controller,
    health_controller,
    page_controller,
    stored_completion_controller,
    response_controller,
)


def create_app(
    settings: Settings,
    build: Callable[..., Any] = build,
    warm_up: Callable[[], None] = lambda: None,
    process: Process | None = None,
) -> FastAPI:
    """`build` makes the engines, as `services.engine.build` does. `warm_up` runs beside the first requests. `process`
    exits if the start fails; without one the error is raised."""
    log.configure(settings.log.level, settings.log.format)
    database = Database(settings.database.url)
    turns = TurnService(
        database,
        writer=this_writer(),
        checkpoint_s=settings.chat.checkpoint_s,
        ttl_s=settings.database.ttl_s,
    )
    services = _services(settings, turns, database, build)
    routes = Routes()
    connections = _connections(settings.server)
    app = FastAPI(
        title="Parley",
        lifespan=Lifespan(
            settings=settings,
            services=services,
            turns=turns,
            database=database,
            connections=connections,
            warm_up=warm_up,
            process=process,
        ),
        middleware=_middleware(settings, services, routes, connections),
    )
    app.state.services = services
    app.state.routes = routes
    errors.install(app)
    for controller in CONTROLLERS:
        app.include_router(controller.router)
        routes.add("Parley", controller.router.routes)
    app.mount("/static", StaticFiles(directory=page_controller.STATIC))
    routes.add("Parley", app.routes)
    loading.install(app, _specs(settings), Server(services), routes)
    openapi.describe(app, routes, guarded=bool(settings.api_keys))
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


def _services(settings: Settings, turns: TurnService, database: Database, build: Callable[..., Any]) -> Services:
    metrics = Metrics()
    manager = ModelManager(
        model_configs.configs(settings),
        aliases=settings.model.aliases,
        locate=partial(sources.locate, models_dir=settings.models_dir),
        build=build,
        recommended=partial(sources.recommended_sampling, models_dir=settings.models_dir, read=read_sampling_defaults),
    )
    metrics.watch(manager.stats)
    streams = StreamService(database)
    secrets = SecretService(database, settings.server.secret)
    texts = TextService()
    chat = ChatService(
        manager,
        turns,
        metrics,
        system_prompt=settings.chat.system_prompt,
        max_new_tokens=settings.chat.max_new_tokens,
        images=_images(settings.images),
        texts=texts,
        max_tokenize_chars=settings.server.max_tokenize_chars,
    )
    conversations = ConversationService(database)
    messages = MessageService(chat, turns, conversations)
    stored_responses = StoredResponseService(turns, streams, secrets)
    inputs = InputService(turns, secrets)
    compactions = CompactionService(chat, secrets, inputs)
    return Services(
        event_sources=EventSourceService(messages, turns, streams),
        chat=chat,
        compactions=compactions,
        completions=CompletionService(manager, metrics, texts),
        embeddings=EmbeddingService(manager, metrics, texts),
        messages=messages,
        stored_completions=StoredCompletionService(turns),
        conversations=conversations,
        items=ItemService(database),
        search=SearchService(database),
        models=manager,
        catalogue=CatalogueService(manager),
        metrics=metrics,
        keys=Keys(settings.api_keys, settings.server.token_ttl_s),
        drain=Drain(settings.server.drain_s, interrupt=manager.stop, is_busy=lambda: streams.num_running > 0),
        sse=Sse(keepalive=settings.server.keepalive_s, send_timeout=settings.server.send_timeout_s),
        reranker=RerankService(manager, metrics, texts),
        responses=ResponseService(chat, turns, streams, stored_responses, secrets, inputs, compactions),
        secrets=secrets,
        stored_responses=stored_responses,
        streams=streams,
        tokenizers=TokenizeService(manager, chat, texts, settings.server.max_tokenize_chars),
        trees=TreeService(database),
        unknown_keys=UnknownKeys(strict=settings.strict),
        info=ServerInfo(settings.chat.max_new_tokens, settings.model.device, settings.chat.system_prompt),
    )


def _images(settings: ImageSettings) -> ImageService:
    fetcher = Fetcher(settings.hosts, max_bytes=settings.max_bytes, timeout_s=settings.timeout_s)
    return ImageService(
        max_images=settings.max_images,
        max_bytes=settings.max_bytes,
        max_pixels=settings.max_pixels,
        max_held_bytes=settings.max_held_bytes,
        fetcher=fetcher if settings.hosts else None,
    )


def _middleware(settings: Settings, services: Services, routes: Routes, connections: Connections) -> list[Middleware]:
    """Outermost first."""
    cors = settings.cors.origins
    hosts = AllowedHosts(settings.server.host, settings.server.allowed_hosts)
    guard = [] if settings.api_keys else [Middleware(PageGuard, hosts=hosts, origins=cors)]
    return [
        Middleware(Protocol, routes=routes),
        Middleware(SecurityHeaders),
        Middleware(RequestLog, metrics=services.metrics),
        Middleware(CORSMiddleware, allow_origins=cors, allow_methods=["*"], allow_headers=["*"], expose_headers=["*"]),
        Middleware(ConnectionGate, connections=connections),
        *guard,
        Middleware(Options, routes=routes),
        Middleware(AuthMiddleware, keys=services.keys),
        Middleware(DrainGate, drain=services.drain),
        Middleware(BodyLimit, max_bytes=settings.server.max_body_bytes),
        Middleware(Decompress, max_bytes=settings.server.max_body_bytes),
    ]


def _app() -> FastAPI:
    """The app of this process. Wrong settings are reported before anything is opened."""
    with exits.in_one_line():
        settings = configuration.read()
        sources.check(model_configs.configs(settings))
        return create_app(settings, warm_up=partial(warm_up, model_configs.engines(settings)), process=Process())


app = _app()
