"""Bodies as strict JSON: neither NaN nor half a surrogate pair, on which tokenizers and encoders fail later."""

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send


class JsonRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            return await answer(_JsonRequest(request.scope, request.receive))

        return strictly


class UntypedJsonRoute(JsonRoute):
    """For clients that send JSON under another type, as curl and `requests` do unless told otherwise."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["headers"] = [header for header in scope["headers"] if header[0] != b"content-type"]
        await super().handle(scope, receive, send)


class _JsonRequest(Request):
    async def json(self) -> Any:
        return orjson.loads(await self.body())  # its error is a json.JSONDecodeError, which FastAPI knows
