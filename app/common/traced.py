"""A span for every request but probes, as plain ASGI. It continues the trace that `traceparent` names."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.common.errors import problem
from app.common.log import request_id, trace_id
from app.common.middleware import METHODS, PROBES
from services.tracing import Span, Tracer, ending, under

SERVER_ERROR = 500


class Traced:
    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app = app
        self._tracer = tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self._app(scope, receive, send)
            return
        span = self._begin(scope)
        trace_id.set(span.trace_id)

        async def send_traced(message: Message) -> None:
            if message["type"] == "http.response.start":
                _set_status(span, message["status"])
            await send(message)

        with ending(span), under(span):
            try:
                await self._app(scope, receive, send_traced)
            except Exception as error:
                _set_status(span, problem(error).status)  # which is sent further out
                raise
            finally:
                if route := getattr(scope.get("route"), "path", ""):
                    span.rename(f"{_method(scope)} {route}")
                    span.set({"http.route": route})

    def _begin(self, scope: Scope) -> Span:
        headers = Headers(scope=scope)
        attributes = {
            "http.request.method": _method(scope),
            "url.path": scope["path"],  # without the query, which may have a key
            "url.scheme": scope["scheme"],
            "network.protocol.version": scope["http_version"],
            "parley.request.id": request_id.get(),
        }
        if agent := headers.get("user-agent"):
            attributes["user_agent.original"] = agent
        return self._tracer.root(_method(scope), headers, attributes, kind="server")


def _method(scope: Scope) -> str:
    method: str = scope["method"]
    return method if method in METHODS else "_OTHER"


def _set_status(span: Span, status: int) -> None:
    span.set({"http.response.status_code": status})
    if status >= SERVER_ERROR:
        span.fail(str(status))
