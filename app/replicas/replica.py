"""A replica: the app without a listener of its own, on connections that the front hands over.

python -m app.replicas.replica FD
"""

import asyncio
import signal
import socket
import sys
from dataclasses import dataclass
from typing import Any

import uvicorn
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.common import configuration
from app.common.connection import Connection, current
from app.replicas.channel import Channel
from services import affinity

TICK_S = 0.2


@dataclass(frozen=True, slots=True)
class Handed:
    """A connection that the front has handed over."""

    number: int
    affinity: str  # empty: none was found


class OneRequestEach:
    """Each connection has one request: the next one may belong to another replica. Reports answers as they begin."""

    def __init__(self, app: ASGIApp, replica: "Replica") -> None:
        self._app = app
        self._replica = replica

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        affinity.current.set(self._replica.affinity_key())

        async def send_and_close(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["connection"] = "close"
                self._replica.report_begun(scope, Headers(raw=message["headers"]))
            await send(message)

        await self._app(scope, receive, send_and_close)


class Replica(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, end: socket.socket) -> None:
        super().__init__(config)
        self._end = end
        self._channel: Channel | None = None
        self._handed: dict[Connection, Handed] = {}
        self._tasks: set[asyncio.Future[Any]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=[])
        self._channel = Channel(self._end, self._take, self._front_is_gone)
        self._keep(asyncio.ensure_future(self._report()))

    def report_begun(self, scope: Scope, headers: Headers) -> None:
        connection = current.get()
        if self._channel and connection in self._handed:
            assert connection
            is_chunked = "content-length" not in headers and scope["http_version"] != "1.0"
            begun = {"path": scope["path"][:200], "content_type": headers.get("content-type", "")[:200]}
            self._channel.send({"begun": self._handed[connection].number, **begun, "is_chunked": is_chunked})

    def affinity_key(self) -> str:
        """Of the running request, as the front has found it."""
        handed = self._handed.get(connection) if (connection := current.get()) else None
        return handed.affinity if handed else ""

    def _take(self, packet: dict[str, Any], files: list[int]) -> None:
        for file in files:
            handed = Handed(packet["number"], packet["affinity"])
            self._keep(asyncio.ensure_future(self._serve_connection(handed, socket.socket(fileno=file))))

    def _keep(self, task: "asyncio.Future[Any]") -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve_connection(self, handed: Handed, connection: socket.socket) -> None:
        connection.setblocking(False)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: self._protocol(handed), connection)
        except OSError:  # the client has left
            connection.close()
            self._end_of(handed.number)

    def _protocol(self, handed: Handed) -> asyncio.Protocol:
        kind: Any = self.config.http_protocol_class
        inner = kind(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        connections = self.config.app.state.connections  # type: ignore[union-attr]  # the FastAPI app
        protocol: Connection = connections.guarded(inner, on_lost=lambda: self._lose(protocol))
        self._handed[protocol] = handed
        return protocol

    def _lose(self, connection: Connection) -> None:
        if handed := self._handed.pop(connection, None):
            self._end_of(handed.number)

    def _end_of(self, number: int) -> None:
        if self._channel:
            self._channel.send({"ended": number})

    async def _report(self) -> None:
        services = self.config.app.state.services  # type: ignore[union-attr]
        before = None
        while self._channel:
            now = {"ready": services.models.is_ready(), "draining": services.drain.has_begun}
            if now != before:
                self._channel.send(now)
            before = now
            await asyncio.sleep(TICK_S)

    def _front_is_gone(self) -> None:
        signal.raise_signal(signal.SIGTERM)


def main() -> None:
    from app.main import app

    server = configuration.read().server
    config = uvicorn.Config(app, host=server.host, port=server.port, http="h11", log_config=None, access_log=False)
    replica = Replica(config, socket.socket(fileno=int(sys.argv[1])))
    app.add_middleware(OneRequestEach, replica=replica)
    replica.run()
    sys.exit(0 if replica.started else 3)


if __name__ == "__main__":
    main()
