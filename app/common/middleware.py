"""Middleware for every request, as plain ASGI: BaseHTTPMiddleware would wrap streams."""

import logging
import re
import time
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.common.body_limits import MaxBytes
from app.common.drain import Drain
from app.common.errors import ERROR_BODY, problem
from app.common.log import request_id
from app.common.rate_headers import RATE_HEADERS
from app.common.routes import Routes
from services import affinity
from services.errors import Unavailable
from services.metrics_service import Metrics

access = logging.getLogger("parley.access")

REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
CLIENT_LEFT = 499  # nginx's status for a client that disconnects before its answer
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
PROBES = ("/health", "/health/live", "/health/ready", "/metrics")


class RequestLog:
    """Puts the request id on every response and log line; writes an access line and counts the request at the end."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received = Headers(scope=scope).get("x-request-id", "")
        id_ = received if REQUEST_ID.fullmatch(received) else f"req_{uuid4().hex}"
        request_id.set(id_)
        status = CLIENT_LEFT
        started = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = id_
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            if status != CLIENT_LEFT:
                raise
            await problem(error).response(scope)(scope, receive, send_with_id)
        finally:
            self._record(scope, status, time.perf_counter() - started)

    def _record(self, scope: Scope, status: int, seconds: float) -> None:
        # the route's pattern and a known method, so that callers cannot create endless time series
        route = getattr(scope.get("route"), "path", "unmatched")
        self._metrics.http(scope["method"] if scope["method"] in METHODS else "other", route, status)
        access.info(
            "%s %s %d %.0f ms",
            scope["method"],
            scope["path"],
            status,
            seconds * 1000,
            extra={"fields": {"method": scope["method"], "path": scope["path"], "status": status, "seconds": seconds}},
        )


class BodyLimit:
    """Answers 413 by the declared length at once, else as soon as the limit is passed."""

    def __init__(self, app: ASGIApp, max_bytes: MaxBytes) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        received = 0
        most = self._max_bytes(scope["path"])
        length = Headers(scope=scope).get("content-length", "")
        declared = int(length) if length.isdecimal() else 0

        async def counted() -> Message:
            nonlocal received
            if declared > most:  # before receiving: the body may never arrive
                raise HTTPException(413)
            message = await receive()
            received += len(message.get("body", b""))
            if received > most:
                raise HTTPException(413)
            return message

        await self._app(scope, counted, send)


class DrainGate:
    """Counts running requests; during the drain only probes are accepted."""

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self._app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self._app(scope, receive, send)
        elif self._drain.has_begun:
            refused = problem(Unavailable("The server is shutting down", retry_after=5)).response(scope)
            refused.headers["connection"] = "close"
            await refused(scope, receive, send)
        else:
            with self._drain.running():
                await self._app(scope, receive, send)


class Protocol:
    """Marks requests of other protocols than OpenAI's: they have their own error body and request id header."""

    def __init__(self, app: ASGIApp, routes: Routes) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._routes.foreign(scope["path"]) if scope["type"] == "http" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        scope.setdefault("state", {})[ERROR_BODY] = found.error_body
        if found.rate_headers:
            scope["state"][RATE_HEADERS] = found.rate_headers

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start" and found.request_id:
                headers = MutableHeaders(scope=message)
                headers[found.request_id] = headers["x-request-id"]
            await send(message)

        await self._app(scope, receive, send_with_id)


class Options:
    """Answers OPTIONS with the methods of a path, without a key. Preflights never get here: CORS answers them.

    Not declared routes: one beside each path would double them, and each would need an exception in AuthMiddleware.
    """

    def __init__(self, app: ASGIApp, routes: Routes) -> None:
        self._app = app
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_options = scope["type"] == "http" and scope["method"] == "OPTIONS"
        if is_options and (methods := self._routes.methods(scope["path"])):
            response = Response(status_code=204, headers={"Allow": ", ".join([*methods, "OPTIONS"])})
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)


class AffinityHeader:
    """The client's own name of a session, unless the front of a replica has found a key already."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = _session(scope) if scope["type"] == "http" and not affinity.current.get() else ""
        if not name:
            await self._app(scope, receive, send)
            return
        token = affinity.current.set(affinity.of_session(name))
        try:
            await self._app(scope, receive, send)
        finally:
            affinity.current.reset(token)


def _session(scope: Scope) -> str:
    headers = Headers(scope=scope)
    return headers.get("x-session-id") or headers.get("x-session-affinity") or ""
