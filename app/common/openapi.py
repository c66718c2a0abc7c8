"""Completes FastAPI's OpenAPI document: error responses, authentication and examples of every operation."""

from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI

from app.common import examples
from app.common.auth import STREAM, is_open
from app.common.errors import Problem
from app.common.router import EVENT_STREAM
from app.common.routes import Routes
from schemas.error_schema import ErrorBody

# For routes that stream on request: in addition to the JSON of a plain answer.
EVENTS: dict[int | str, dict[str, Any]] = {200: {"content": {EVENT_STREAM: {}}}}

REF = "#/components/schemas/"
FASTAPI_ERRORS = ("HTTPValidationError", "ValidationError")  # replaced by ours
KEYS = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    "token": {"type": "apiKey", "in": "query", "name": "token", "description": "from POST /chat/token"},
}


def describe(app: FastAPI, routes: Routes, *, guarded: Callable[[], bool]) -> None:
    """`guarded`: whether requests need a key, which the first key of the database changes."""
    fastapi_document = app.openapi
    documents: dict[bool, dict[str, Any]] = {}

    def openapi() -> dict[str, Any]:
        is_guarded = guarded()
        if is_guarded not in documents:
            app.openapi_schema = None
            documents[is_guarded] = _completed(fastapi_document(), routes, is_guarded)
        return documents[is_guarded]

    app.openapi = openapi  # type: ignore[method-assign]  # as its documentation says


def _completed(document: dict[str, Any], routes: Routes, guarded: bool) -> dict[str, Any]:
    components = document["components"]
    for name in FASTAPI_ERRORS:
        components["schemas"].pop(name, None)
    own = ErrorBody.model_json_schema(ref_template=REF + "{model}")
    components["schemas"] |= own.pop("$defs") | {"ErrorBody": own}
    if guarded:
        components["securitySchemes"] = KEYS
    examples.add(document)
    for path, item in document["paths"].items():
        if not is_open(path):
            schema = {"$ref": f"{REF}ErrorBody"} if _has_openai_errors(routes, path) else {"type": "object"}
            for operation in item.values():
                _complete(operation, path, schema)
                if guarded:
                    operation["security"] = [{"bearer": []}, {"header": []}, *([{"token": []}] * (path == STREAM))]
    return document


def _has_openai_errors(routes: Routes, path: str) -> bool:
    """Whether the path answers errors with OpenAI's body: a spec may have its own."""
    sample = Problem(HTTPStatus.BAD_REQUEST, "", "")
    found = routes.foreign(path)
    return not (found and found.error_body) or found.error_body(sample) == sample.body()


def _complete(operation: dict[str, Any], path: str, schema: dict[str, Any]) -> None:
    responses = operation["responses"]
    responses.pop("422", None)
    for status in _error_statuses(operation):
        error = {"description": status.phrase, "content": {"application/json": {"schema": schema}}}
        if status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
            error["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "number"}}}
        responses.setdefault(str(status.value), error)


def _error_statuses(operation: dict[str, Any]) -> Iterator[HTTPStatus]:
    """401, 403, 500 and 503 are possible on every route; 404 on those for admin keys, for whoever has none."""
    if "administration" in operation.get("tags", ()):
        yield HTTPStatus.NOT_FOUND
    if operation.get("parameters") or "requestBody" in operation:
        yield from (HTTPStatus.BAD_REQUEST, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS)
    if "requestBody" in operation:
        yield HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    yield from (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN)
    yield from (HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.SERVICE_UNAVAILABLE)
