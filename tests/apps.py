"""Services and the whole app around fakes: called directly, or on a real port where streams and disconnects matter.

Both run on the test's event loop, so that a test can pause its engine and observe the app.
"""

import asyncio
import logging
import shutil
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import uvicorn
from fastapi import FastAPI
from openai import AsyncOpenAI, DefaultAsyncHttpxClient

from app.common.dependencies import Services
from app.common.settings import Settings
from database.session import Database
from services.chat_service import ChatService
from services.conversation_service import ConversationService
from services.metrics_service import Metrics
from services.model_service import ModelManager
from services.models.config import ModelConfig
from services.turn_service import TurnService
from tests.fakes import FakeEngine

MODEL = "fake-chat"
ADMINISTRATION = (  # parts of paths that need an admin key
    *("/organization/", "/admin/", "load_lora_adapter", "/load", "/unload", "/pull", "/api/delete"),
)
LAST_TURNS = 10  # of the event loop, in which idle connections are closed
PATIENCE_S = 120  # for an answer: a busy machine is no failure


def is_administration(method: str, path: str) -> bool:
    return any(each in path for each in ADMINISTRATION) or (method == "DELETE" and "/models/" in path)


@dataclass(frozen=True, slots=True)
class Site:
    app: FastAPI
    client: httpx2.AsyncClient

    @property
    def services(self) -> Services:
        services: Services = self.app.state.services
        return services


NewSite = Callable[..., Awaitable[Site]]


async def post(site: Site, path: str, **body: Any) -> dict[str, Any]:
    answer = await site.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def official(site: Site, api_key: str = "any", **options: Any) -> AsyncOpenAI:
    """OpenAI's client. It reads no certificates, which would take 20 ms: the address is http://."""
    transport = DefaultAsyncHttpxClient(verify=False)
    url = f"{site.client.base_url}/v1"
    return AsyncOpenAI(base_url=url, api_key=api_key, max_retries=0, http_client=transport, **options)


async def refusal(site: Site, path: str, **body: Any) -> str | None:
    """The parameter named in the error."""
    answer = await site.client.post(path, json=body)
    assert answer.status_code == 400, answer.text
    param: str | None = answer.json()["error"]["param"]
    return param


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine("Hello", ", ", "world!")


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    shutil.copy(sqlite_template, tmp_path / "parley.db")
    return f"sqlite:///{tmp_path}/parley.db"


@pytest.fixture
async def store(sqlite_url: str) -> AsyncIterator[Database]:
    database = Database(sqlite_url)
    yield database
    await database.close()


@pytest.fixture
def turns(store: Database) -> TurnService:
    return TurnService(store, writer="a-host:1")


@pytest.fixture
def conversations(store: Database) -> ConversationService:
    return ConversationService(store)


@pytest.fixture
async def models(engine: FakeEngine) -> AsyncIterator[ModelManager]:
    models = ModelManager([ModelConfig(MODEL, MODEL)], build=engine.builder())
    yield models
    await models.stop()


@pytest.fixture
def chat(models: ModelManager, turns: TurnService) -> ChatService:
    return ChatService(models, turns, Metrics())


@pytest.fixture
def new_app(engine: FakeEngine, sqlite_url: str, tmp_path: Path, process: None) -> Callable[..., FastAPI]:
    # importing it builds an app from the environment, so only when needed
    from app.main import create_app

    def new_app(
        *,
        build: Callable[..., object] | None = None,
        environment: Mapping[str, str] | None = None,
        read_settings: Callable[[dict[str, Any]], Settings] | None = None,
        **settings: object,
    ) -> FastAPI:
        """`read_settings`: what they are later on, from what they are now."""
        database = {"url": sqlite_url, "migrate": False}
        models = {
            "model": {"name": MODEL, "preload": False},
            "embedding": {"name": "fake-embedding", "kind": "embedding"},
        }
        given = {"database": database, "files": {"folder": tmp_path / "files"}, "api_keys": [], **models, **settings}
        return create_app(
            Settings(_env_file=None, **given),
            build=build or engine.builder(),
            environment=environment or {},
            read_settings=partial(read_settings, given) if read_settings else None,
        )

    return new_app


@pytest.fixture
async def new_site(new_app: Callable[..., FastAPI], databases: AsyncExitStack) -> AsyncIterator[NewSite]:
    """Called in process: a streamed answer is returned when it is complete."""
    async with _opening(new_app, _called) as new_site:
        yield new_site


@pytest.fixture
async def new_server(new_app: Callable[..., FastAPI], databases: AsyncExitStack) -> AsyncIterator[NewSite]:
    """On a port."""
    async with _opening(new_app, _served) as new_server:
        yield new_server


@pytest.fixture
async def site(new_site: NewSite) -> Site:
    return await new_site()


@pytest.fixture
async def server(new_server: NewSite) -> Site:
    return await new_server()


@pytest.fixture
async def openai(new_server: NewSite, database_url: str) -> AsyncIterator[AsyncOpenAI]:
    """The official client, on a server with each of the databases."""
    site = await new_server(database={"url": database_url, "migrate": False})
    async with official(site) as client:
        yield client


@pytest.fixture
def process() -> Iterator[None]:
    """Restores the log and signal handlers that an app replaces."""
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    signals = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for handler in set(root.handlers) - set(before):
        if type(handler) is logging.StreamHandler:  # others are pytest's
            root.removeHandler(handler)
    root.setLevel(level)
    for number, action in signals.items():
        signal.signal(number, action)


@asynccontextmanager
async def _opening(
    new_app: Callable[..., FastAPI], reach: Callable[[FastAPI], AbstractAsyncContextManager[httpx2.AsyncClient]]
) -> AsyncIterator[NewSite]:
    async with AsyncExitStack() as stack:

        async def new_site(**settings: object) -> Site:
            app = new_app(**settings)
            return Site(app, await stack.enter_async_context(reach(app)))

        yield new_site


@asynccontextmanager
async def _called(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app)
    client = httpx2.AsyncClient(transport=transport, base_url="http://localhost", timeout=PATIENCE_S)
    async with app.router.lifespan_context(app), client:
        yield client


@asynccontextmanager
async def _served(app: FastAPI) -> AsyncIterator[httpx2.AsyncClient]:
    server = _Server(app)
    # bound from the beginning: a port that is only chosen could be taken before it is used
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    serving = asyncio.create_task(server.serve([listening]))
    await server.up.wait()
    async with httpx2.AsyncClient(base_url=url, timeout=PATIENCE_S, verify=False) as client:
        yield client
    server.should_exit = True
    await serving


class _Server(uvicorn.Server):
    """Ends at once: uvicorn looks ten times a second whether it shall, and whether connections are closed."""

    def __init__(self, app: FastAPI) -> None:
        self._loop, self._ending = asyncio.get_running_loop(), asyncio.Event()
        super().__init__(uvicorn.Config(app, http="h11", log_config=None, timeout_graceful_shutdown=5))
        self.up = asyncio.Event()

    @property
    def should_exit(self) -> bool:
        return self._ending.is_set()

    @should_exit.setter
    def should_exit(self, wanted: bool) -> None:
        if wanted:  # maybe by a signal
            self._loop.call_soon_threadsafe(self._ending.set)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    async def main_loop(self) -> None:
        await self.on_tick(0)
        await self._ending.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        for _ in range(LAST_TURNS):
            await asyncio.sleep(0)
        if self.server_state.connections or self.server_state.tasks:
            await super().shutdown(sockets)
            return
        for server in self.servers:
            await server.wait_closed()
        for each in sockets or []:
            each.close()
        await self.lifespan.shutdown()
