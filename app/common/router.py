"""Routers that declare what all routes have in common: HEAD beside GET, and OpenAI's paths with and without /v1.

Not `include_router` twice: FastAPI resolves the prefix of an included router per request and leaves the bare path in
`scope["route"]`, so the metrics and the access log could not tell the two paths apart.
"""

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter

PREFIXES = ("/v1", "")
EVENT_STREAM = "text/event-stream"
HIDDEN: Mapping[str, Any] = {"include_in_schema": False}


class Router(APIRouter):
    """Adds a HEAD route to each GET route, except to event streams: HEAD would start an answer that nobody reads."""

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        super().add_api_route(path, endpoint, **options)
        methods = options.get("methods") or ["GET"]
        if "GET" in methods and "HEAD" not in methods and not _is_event_stream(options):
            super().add_api_route(path, endpoint, **{**options, "methods": ["HEAD"], **HIDDEN})


class TwinRouter(Router):
    """Adds each route under /v1 and without it; the OpenAPI document has the one under `documented`."""

    def __init__(self, *, documented: str = "/v1", **options: Any) -> None:
        super().__init__(**options)
        self._documented = documented

    def add_api_route(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        for prefix in PREFIXES:
            visibility = {} if prefix == self._documented else HIDDEN
            super().add_api_route(prefix + path, endpoint, **{**options, **visibility})

    def alias(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        """Adds one more path, hidden."""
        super().add_api_route(path, endpoint, **{**options, **HIDDEN})


def _is_event_stream(options: Mapping[str, Any]) -> bool:
    responses = options.get("responses") or {}
    return EVENT_STREAM in responses.get(HTTPStatus.OK, {}).get("content", {})
