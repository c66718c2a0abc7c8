"""Bodies as strict JSON: no NaN, no half of a surrogate pair, no depth on which what comes later would fail."""

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from app.common.errors import PARAM_LENGTH
from services.errors import InvalidRequest

MAX_DEPTH = 128  # encoders end at 254, and answers wrap what they repeat


class JsonRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            try:
                return await answer(_JsonRequest(request.scope, request.receive))
            except HTTPException as error:
                if isinstance(error.__cause__, InvalidRequest):  # FastAPI wraps what reading the body raises
                    raise error.__cause__ from None
                raise

        return strictly


class UntypedJsonRoute(JsonRoute):
    """For clients that send JSON under another type, as curl and `requests` do unless told otherwise."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        scope["headers"] = [header for header in scope["headers"] if header[0] != b"content-type"]
        await super().handle(scope, receive, send)


class _JsonRequest(Request):
    async def json(self) -> Any:
        text = await self.body()
        body = orjson.loads(text)  # its error is a json.JSONDecodeError, which FastAPI knows
        if text.count(b"[") + text.count(b"{") > MAX_DEPTH:  # else it cannot be too deep
            _check_depth(body)
        return body


def _check_depth(body: Any) -> None:
    for key, value in body.items() if isinstance(body, dict) else [(None, body)]:
        if _is_deeper(value, MAX_DEPTH):
            raise InvalidRequest(f"Nested more than {MAX_DEPTH} levels deep", param=key and key[:PARAM_LENGTH])


def _is_deeper(value: Any, levels: int) -> bool:
    """Level by level: what is too deep for others is not to be walked recursively."""
    level = [value]
    for _ in range(levels):
        level = [each for each in level if isinstance(each, dict | list)]
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return bool(level)
