"""What the replicas on a cluster know of each other: one page of metrics, and whether all have been ready."""

import asyncio
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import ray
from starlette.responses import JSONResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.replicas.metrics import merged

NAME, NAMESPACE = "parley-board", "serve"
REPORT_S = 5.0
UNTIL_READY_S = 0.5


@ray.remote(num_cpus=0)
class Board:
    """Has the newest page of each replica."""

    def __init__(self) -> None:
        self._pages: dict[str, tuple[float, str]] = {}
        self._ready: set[str] = set()
        self._have_been_ready = False

    def put(self, name: str, page: str, is_ready: bool, least: int) -> bool:
        """Whether as many as `least` have been ready at a time."""
        self._pages[name] = time.monotonic(), page
        if is_ready:
            self._ready.add(name)
        self._have_been_ready |= len(self._ready & self.pages().keys()) >= least
        return self._have_been_ready

    def pages(self) -> dict[str, str]:
        """Of the replicas that still report."""
        oldest = time.monotonic() - 3 * REPORT_S
        self._pages = {name: (at, page) for name, (at, page) in self._pages.items() if at > oldest}
        return {name: page for name, (_, page) in sorted(self._pages.items())}


def board() -> Any:
    return Board.options(name=NAME, namespace=NAMESPACE, get_if_exists=True, lifetime="detached").remote()  # type: ignore[attr-defined]


def remove_board() -> None:
    """It would outlive the replicas."""
    with suppress(ValueError):  # no replica has reported
        ray.kill(ray.get_actor(NAME, namespace=NAMESPACE))


class Reporter:
    """A replica's: reports to the board."""

    def __init__(self, name: str, least: int, render: Callable[[], bytes], is_ready: Callable[[], bool]) -> None:
        self.all_have_been_ready = False
        self._name = name
        self._least = least
        self._render = render
        self._is_ready = is_ready

    async def run(self) -> None:
        while True:
            report = board().put.remote(self._name, self._render().decode(), self._is_ready(), self._least)
            self.all_have_been_ready = await report or self.all_have_been_ready
            await asyncio.sleep(REPORT_S if self.all_have_been_ready else UNTIL_READY_S)


class OfAll:
    """Answers /metrics with the pages of all replicas, each a few seconds old, and /health/ready once all have been
    ready. Who may read them the app decides."""

    def __init__(self, app: ASGIApp, reporter: Reporter) -> None:
        self._app = app
        self._reporter = reporter

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in ("/metrics", "/health/ready"):
            await self._app(scope, receive, send)
        elif scope["path"] == "/metrics":
            await self._app(scope, receive, _Instead(self._metrics, scope, receive, send))
        elif self._reporter.all_have_been_ready:
            await self._app(scope, receive, send)
        else:
            await self._app(scope, receive, _Instead(self._loading, scope, receive, send))

    async def _metrics(self) -> Response:
        page = merged(await board().pages.remote())
        return Response(page, media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _loading(self) -> Response:
        return JSONResponse({"status": "loading"}, 503)


class _Instead:
    """Sends another answer in place of one with the status 200."""

    def __init__(self, other: Callable[[], Any], scope: Scope, receive: Receive, send: Send) -> None:
        self._other = other
        self._rest = scope, receive, send
        self._status = 0

    async def __call__(self, message: Message) -> None:
        scope, receive, send = self._rest
        if message["type"] == "http.response.start":
            self._status = message["status"]
        if self._status != 200:
            await send(message)
        elif message["type"] == "http.response.body" and not message.get("more_body", False):
            response = await self._other()
            await response(scope, receive, send)
