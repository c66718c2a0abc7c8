"""In Ray's HTTP proxies: sets the key by which its router chooses a replica, and ends answers whose replica is gone.

RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=app.replicas.ray_proxy:middlewares, in the environment of `ray start`.
"""

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.replicas.affinity import Head, key
from app.replicas.gone import REFUSAL, Begun, last_event

SESSION = b"x-session-id"
LOOK = 65536  # bytes of a body


class SessionKey:
    """Reads the beginning of a body, whose messages it passes on afterwards."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        messages: list[Message] = []
        body, is_complete = b"", scope["method"] != "POST"
        while not is_complete and len(body) < LOOK:
            message = await receive()
            messages.append(message)
            body += message.get("body", b"")
            is_complete = not message.get("more_body", False)
        head = Head(scope["method"].encode(), scope["path"].encode(), dict(scope["headers"]), body, is_complete)
        if found := key(head):
            others = [(name, value) for name, value in scope["headers"] if name != SESSION]
            scope = {**scope, "headers": [*others, (SESSION, found.encode())]}
        waiting = iter(messages)

        async def received() -> Message:
            return next(waiting, None) or await receive()

        await self._app(scope, received, send)


class LastEvent:
    """Ends what a replica has begun and left: Ray only breaks off the connection."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun: Begun | None = None
        is_whole = False

        async def watched(message: Message) -> None:
            nonlocal begun, is_whole
            if message["type"] == "http.response.start":
                headers = Headers(raw=message["headers"])
                begun = Begun(scope["path"], headers.get("content-type", ""), "content-length" not in headers)
            elif message["type"] == "http.response.body":
                is_whole = not message.get("more_body", False)
            await send(message)

        await self._app(scope, receive, watched)
        if begun is None:
            await Response(REFUSAL, 503, {"retry-after": "1"}, "application/json")(scope, receive, send)
        elif not is_whole and (event := last_event(begun)):
            await send({"type": "http.response.body", "body": event})


def middlewares() -> list[Middleware]:
    return [Middleware(SessionKey), Middleware(LastEvent)]
