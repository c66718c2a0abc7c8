"""Timeouts for slow clients, and a limit on connections below the limit of open files.

uvicorn has a timeout between requests, and none for a request that does not arrive. It opens its listeners through the
event loop after the application has started, so `create_server` is wrapped to make guarded connections. This works for
`parley serve`, the plain `uvicorn` command and each of several workers.
"""

import asyncio
import logging
import os
import resource
import time
from collections.abc import Callable
from typing import Any

import h11
from starlette.types import ASGIApp, Receive, Scope, Send

from app.common.connection import Connection, Deadlines, current
from app.common.errors import problem
from app.common.middleware import PROBES
from services.errors import Unavailable

logger = logging.getLogger(__name__)

BURST = 16  # accepted in one iteration of the loop; up to four iterations may not be counted yet
EXTRA = 16  # beyond the limit, so that probes are answered
FILES = 64  # reserved for the database, model files and image downloads
MIN_CONNECTIONS = 16


def max_connections() -> int:
    """What the limit of open files allows."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return 2**20
    return max(MIN_CONNECTIONS, limit - len(os.listdir("/dev/fd")) - FILES - EXTRA - 4 * BURST)


class Connections:
    def __init__(self, deadlines: Deadlines, limit: int | None) -> None:
        self._deadlines = deadlines
        self._configured = limit
        self._limit = limit or MIN_CONNECTIONS
        self._open: dict[Connection, None] = {}  # oldest first
        self._watch: asyncio.Task[None] | None = None
        self._has_warned = False

    def install(self) -> None:
        """Wraps the running loop, before the server opens its listeners."""
        loop = asyncio.get_running_loop()
        self._limit = self._configured or max_connections()
        self._watch = loop.create_task(self._close_late_ones())
        create_server = loop.create_server

        async def guarded(factory: Callable[[], Any], *args: Any, backlog: int = 100, **options: Any) -> asyncio.Server:
            # asyncio accepts `backlog` connections at once, before any can be counted
            server = await create_server(self._guard(factory), *args, backlog=min(backlog, BURST), **options)
            for each in server.sockets:
                with each.dup() as listener:
                    listener.listen(backlog)
            return server

        loop.create_server = guarded  # type: ignore[method-assign,assignment]

    async def uninstall(self) -> None:
        asyncio.get_running_loop().__dict__.pop("create_server", None)
        if self._watch:
            self._watch.cancel()
            await asyncio.wait({self._watch})

    def _guard(self, factory: Callable[[], Any]) -> Callable[[], Any]:
        def guarded() -> Any:
            protocol = factory()
            http = getattr(protocol, "conn", None)
            if isinstance(http, h11.Connection):
                return Connection(protocol, http, self)
            if not self._has_warned:
                self._has_warned = True
                logger.warning("connections have no timeouts: start the server with --http h11")
            return protocol

        return guarded

    def guarded(self, protocol: Any, on_lost: Callable[[], None]) -> Connection:
        """One that another process has accepted. `protocol`: uvicorn's, with h11."""
        return Connection(protocol, protocol.conn, self, on_lost=on_lost)

    def opened(self, connection: Connection) -> None:
        """At the limit, closes the connection that has been silent for the longest."""
        is_full = len(self._open) >= self._limit
        if is_full and (silent := self._longest_silent()):
            silent.end()
        elif is_full:
            connection.is_extra = True
        if len(self._open) >= self._limit + EXTRA:
            connection.end()
        else:
            self._open[connection] = None

    def closed(self, connection: Connection) -> None:
        self._open.pop(connection, None)

    def is_over_limit(self) -> bool:
        """Whether the current request's connection is beyond the limit."""
        connection = current.get()
        return connection is not None and connection.is_extra and len(self._open) > self._limit

    def _longest_silent(self) -> Connection | None:
        now = time.monotonic()
        silent = ((each.silent_since(now, self._deadlines), each) for each in self._open)
        return min(((since, each) for since, each in silent if since is not None), default=(0, None), key=_first)[1]

    async def _close_late_ones(self) -> None:
        shortest = min(self._deadlines.headers, self._deadlines.body, self._deadlines.send)
        while True:
            await asyncio.sleep(min(1.0, shortest / 4))
            now = time.monotonic()
            late = [each for each in list(self._open) if each.is_late(now, self._deadlines)]
            for each in late:
                each.end()
            if late:
                logger.info("closed %d connections that kept the server waiting", len(late))


def _first(pair: tuple[float, Connection | None]) -> float:
    return pair[0]


class ConnectionGate:
    """Answers 503 on connections beyond the limit, except to probes."""

    def __init__(self, app: ASGIApp, connections: Connections) -> None:
        self._app = app
        self._connections = connections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not self._connections.is_over_limit() or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        refused = problem(Unavailable("The server has too many connections", retry_after=1)).response(scope)
        refused.headers["connection"] = "close"
        await refused(scope, receive, send)
