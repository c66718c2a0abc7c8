"""Bodies as strict JSON: no NaN, no half of a surrogate pair, neither deeper nor more than what comes later bears."""

from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from app.common.errors import PARAM_LENGTH
from app.common.ignored import UnknownKeys, add
from app.common.page_guard import is_from_another_origin
from app.common.query_keys import QueryKeys
from services.errors import InvalidRequest

MAX_DEPTH = 128  # encoders end at 254, and answers wrap what they repeat
MAX_NODES = 50_000  # each takes its time to be checked, and everybody else's meanwhile


class JsonRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()
        query_keys = QueryKeys(self)

        async def strictly(request: Request) -> Response:
            ignored = _ignored(request, query_keys.unknown(request.query_params))
            try:
                return add(ignored, await answer(_JsonRequest(request.scope, request.receive)))
            except HTTPException as error:
                if isinstance(error.__cause__, InvalidRequest):  # FastAPI wraps what reading the body raises
                    raise error.__cause__ from None
                raise

        return strictly


def _ignored(request: Request, names: list[str]) -> dict[str, str]:
    unknown: UnknownKeys | None = request.app.state.services.unknown_keys if names else None
    return unknown.header(names) if unknown else {}


class UntypedJsonRoute(JsonRoute):
    """For clients that send JSON under another type, as curl and `requests` do unless told otherwise.

    For programs only: text is what a browser lets any page send anywhere without asking, JSON is not.
    """

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        if self.body_field and is_from_another_origin(headers) and not _is_json(headers.get("content-type", "")):
            raise InvalidRequest("A page of another origin sends Content-Type: application/json", param="content-type")
        scope["headers"] = [header for header in scope["headers"] if header[0] != b"content-type"]
        await super().handle(scope, receive, send)


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


class _JsonRequest(Request):
    async def json(self) -> Any:
        text = await self.body()
        body = orjson.loads(text)  # its error is a json.JSONDecodeError, which FastAPI knows
        if text.count(b"[") + text.count(b"{") > MAX_DEPTH:  # else it is small
            _check_shape(body)
        return body


def _check_shape(body: Any) -> None:
    left = MAX_NODES
    for key, value in body.items() if isinstance(body, dict) else [(None, body)]:
        for depth, size in enumerate(_sizes(value), 1):
            left -= size
            if depth > MAX_DEPTH:
                raise InvalidRequest(f"Nested more than {MAX_DEPTH} levels deep", param=key and key[:PARAM_LENGTH])
            if left < 0:
                raise InvalidRequest(f"More than {MAX_NODES} objects and lists", param=key and key[:PARAM_LENGTH])


def _sizes(value: Any) -> Iterator[int]:
    """How many objects and lists each level has: what is too deep for others is not to be walked recursively."""
    level = [value]
    while level := [each for each in level if isinstance(each, dict | list)]:
        yield len(level)
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
