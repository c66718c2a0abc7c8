"""Start and stop of the app: database, models, background tasks and connections, in this order."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from wsgiref.simple_server import WSGIServer

from fastapi import FastAPI
from prometheus_client import start_http_server

from app.common import exits, model_configs
from app.common.connections import Connections
from app.common.dependencies import Services
from app.common.settings import DatabaseSettings, ServerSettings, Settings
from app.process import Process, listening, uvicorn_server
from app.startup import announce
from database import schema_version, sqlite_file
from database.connect_error import naming_the_database
from database.session import Database
from services.metrics_service import Metrics
from services.model_service import reason
from services.tracing import Tracer
from services.turn_service import TurnService

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifespan:
    settings: Settings
    services: Services
    turns: TurnService
    database: Database
    connections: Connections
    tracer: Tracer
    warm_up: Callable[[], None]
    process: Process | None  # None: errors at start are raised

    @asynccontextmanager
    async def __call__(self, app: FastAPI) -> AsyncIterator[None]:
        exporter = await self._open()
        await self.turns.start()
        await self.services.secrets.start()
        await self.services.stored_keys.start()
        self.services.limits.start()
        server = uvicorn_server()  # looked up before the drain replaces its signal handlers
        preloaded = model_configs.preloaded(self.settings)
        configs, has_keys = model_configs.configs(self.settings), self.services.stored_keys.has_keys
        announce(self.settings, configs, preloaded, server, guarded=has_keys)
        self.services.drain.install()
        is_listening = asyncio.create_task(listening(server))
        self.services.models.start(preloaded, after=is_listening, on_failure=self._on_failed_model)
        warming = asyncio.create_task(_after(is_listening, self.warm_up))
        self.services.claims.start()
        self.services.files.start()
        self.services.batch_worker.start()
        self.connections.install()
        yield
        await self.connections.uninstall()
        is_listening.cancel()
        await asyncio.wait([warming])
        if exporter:
            await asyncio.to_thread(exporter.shutdown)
            exporter.server_close()
        await self._close()

    async def _open(self) -> WSGIServer | None:
        try:
            await _open_database(self.database, self.settings.database)
            await self.services.files.check()
            return _metrics_exporter(self.settings.server, self.services.metrics)
        except Exception as error:
            await self.database.close()
            if self.process is None or (line := exits.explain(error)) is None:
                raise
            await self.process.refuse_to_start(line)

    async def _close(self) -> None:
        await self.services.batch_worker.stop()
        await self.services.claims.stop()
        await self.services.claims.leave()
        await self.services.files.stop()
        await self.services.stored_keys.stop()
        await self.services.limits.stop()
        await self.services.streams.close()
        await self.services.pulls.stop()
        await self.services.models.stop()
        await self.turns.stop()
        await self.database.close()
        await asyncio.to_thread(self.tracer.shut_down)
        if self.process:
            self.process.after_shutdown()

    def _on_failed_model(self, name: str, error: BaseException) -> None:
        """A preloaded model that cannot be loaded ends the process."""
        line = f"The model '{name}' cannot be served: {reason(error)}"
        if self.process:
            self.process.shut_down(line)
        else:
            logger.error("%s", line)


async def _open_database(database: Database, settings: DatabaseSettings) -> None:
    if settings.migrate:
        await schema_version.bring_up_to_date(settings.url)
        return
    sqlite_file.check(settings.url)
    with naming_the_database(settings.url):
        await database.ping()


def _metrics_exporter(settings: ServerSettings, metrics: Metrics) -> WSGIServer | None:
    """Serves /metrics on a port of its own, for scrapers that must not reach the other routes."""
    if settings.metrics_port is None:
        return None
    return start_http_server(settings.metrics_port, settings.host, metrics.registry)[0]


async def _after(is_listening: "asyncio.Task[None]", work: Callable[[], None]) -> None:
    await asyncio.shield(is_listening)
    await asyncio.to_thread(work)
