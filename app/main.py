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
from app.common.auth import AuthMiddleware
from app.common.compression import Decompress
from app.common.connection import Deadlines
from app.common.connections import ConnectionGate, Connections
from app.common.dependencies import Services
from app.common.middleware import AffinityHeader, BodyLimit, DrainGate, Options, Protocol, RequestLog
from app.common.pace import RequestPace
from app.common.page_guard import PageGuard
from app.common.reload import ReadSettings
from app.common.routes import Routes
from app.common.security_headers import SecurityHeaders
from app.common.settings import ServerSettings, Settings
from app.common.traced import Traced
from app.common.tracing import tracer_of
from app.composition import build_services, foundation
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
from database.session import Database
from services.engine import build, warm_up
from services.models import sources
from services.tracing import NO_TRACER, Tracer
from services.turn_service import KeptRecords, TurnService, this_writer

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
    writer = this_writer()
    turns = _turns(settings, database, writer)
    services = build_services(foundation(settings, database, turns, writer, tracer, build), read_settings)
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


def _turns(settings: Settings, database: Database, writer: str) -> TurnService:
    return TurnService(
        database,
        writer=writer,
        checkpoint_s=settings.chat.checkpoint_s,
        ttl_s=settings.database.ttl_s,
        kept=KeptRecords(settings.records.usage_days * DAY_S, settings.records.audit_days * DAY_S),
    )


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
