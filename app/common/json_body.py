"""Strict JSON bodies: no NaN, no lone surrogates, with limits on nesting and size that later stages can bear."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi._compat import ModelField
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette._utils import AwaitableOrContextManager
from starlette.datastructures import FormData, Headers
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from app.common.errors import PARAM_LENGTH
from app.common.ignored import UnknownKeys, add
from app.common.page_guard import is_from_another_origin
from app.common.query_keys import QueryKeys
from schemas import json_size
from services.errors import InvalidRequest
from services.large import is_large

MAX_DEPTH = 128  # encoders fail at 254, and answers nest parts of the request
MAX_NODES = 50_000  # validating more would block the event loop
LARGE = 32 * 1024  # bytes; smaller bodies are parsed faster than a thread starts

_readers = ThreadPoolExecutor(2, "json")  # few: they compete with the event loop for the interpreter lock


class JsonRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        answer = super().get_route_handler()
        query_keys = QueryKeys(self)
        field = self.body_field

        async def handle(request: Request) -> Response:
            ignored = _ignored(request, query_keys.unknown(request.query_params))
            try:
                return add(ignored, await answer(_JsonRequest(request.scope, request.receive, field)))
            except HTTPException as error:
                # FastAPI wraps errors raised while the body is read
                if isinstance(error.__cause__, InvalidRequest | RequestValidationError):
                    raise error.__cause__ from None
                raise

        return handle


def _ignored(request: Request, names: list[str]) -> dict[str, str]:
    unknown: UnknownKeys | None = request.app.state.services.unknown_keys if names else None
    return unknown.header(names) if unknown else {}


class UntypedJsonRoute(JsonRoute):
    """Accepts JSON with another content type, as curl and `requests` send it by default.

    Not from pages of other origins: browsers let any page send text without a preflight, JSON not.
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
    def __init__(self, scope: Scope, receive: Receive, field: ModelField | None) -> None:
        super().__init__(scope, receive)
        self._field = field

    def form(
        self, *, max_files: int | float = 1, max_fields: int | float = 16, max_part_size: int = 4096
    ) -> AwaitableOrContextManager[FormData]:
        """Fields are held in memory, and each file is until it has a megabyte: Starlette's own limits are for more."""
        return super().form(max_files=max_files, max_fields=max_fields, max_part_size=max_part_size)

    async def json(self) -> Any:
        """Validates a large body in a thread: FastAPI would do it on the event loop."""
        text = await self.body()
        if len(text) <= LARGE:
            return _read(text)
        is_large.set(True)
        return await asyncio.get_running_loop().run_in_executor(_readers, _validated, text, self._field)


def _validated(text: bytes, field: ModelField | None) -> Any:
    try:
        json_size.check(text)
    except json_size.TooMuch as error:
        raise InvalidRequest(f"The body {error}") from None
    body = _read(text)
    if field is None:
        return body
    found, errors = field.validate(body, {}, loc=("body",))
    if errors:
        raise RequestValidationError(errors[:1])  # only the first is reported
    return found


def _read(text: bytes) -> Any:
    body = orjson.loads(text)  # raises json.JSONDecodeError, which FastAPI handles
    if text.count(b"[") + text.count(b"{") > MAX_DEPTH:  # fewer brackets cannot nest too deeply
        check_shape(body)
    return body


def check_shape(body: Any) -> None:
    left = MAX_NODES
    for key, value in body.items() if isinstance(body, dict) else [(None, body)]:
        for depth, size in enumerate(_sizes(value), 1):
            left -= size
            if depth > MAX_DEPTH:
                raise InvalidRequest(f"Nested more than {MAX_DEPTH} levels deep", param=key and key[:PARAM_LENGTH])
            if left < 0:
                raise InvalidRequest(f"More than {MAX_NODES} objects and lists", param=key and key[:PARAM_LENGTH])


def _sizes(value: Any) -> Iterator[int]:
    """Number of objects and lists of each level; iterative, since the value may be too deep for recursion."""
    level = [value]
    while level := [each for each in level if isinstance(each, dict | list)]:
        yield len(level)
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
