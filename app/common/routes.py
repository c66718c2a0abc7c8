"""Which methods answer on which path: known before any route is looked up, and who of two would never be reached."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from http import HTTPStatus

from fastapi.routing import APIRoute
from starlette.routing import BaseRoute, Mount, Route

from app.common.auth import OPEN, is_open
from app.common.errors import ErrorBody

EVENT_STREAM = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Entry:
    path: str
    pattern: re.Pattern[str]
    methods: frozenset[str]  # empty: every one
    owner: str
    error_body: ErrorBody | None = None  # None: OpenAI's
    request_id: str | None = None  # a second name of the header x-request-id
    head_is_get: bool = False  # HEAD is answered by who answers GET

    def answers(self, path: str, methods: Iterable[str]) -> bool:
        return bool(self.pattern.match(path)) and (not self.methods or not self.methods.isdisjoint(methods))

    def is_above(self, path: str) -> bool:
        return bool(self.pattern.match(path)) or path.startswith(f"{self.path}/")


class Routes:
    def __init__(self) -> None:
        self._entries: list[Entry] = []

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def add(
        self,
        owner: str,
        routes: Iterable[BaseRoute],
        *,
        error_body: ErrorBody | None = None,
        request_id: str | None = None,
    ) -> None:
        """In the order in which they are asked. Those that match no path of their own are passed over."""
        for route in routes:
            if isinstance(route, Route | Mount):
                methods = frozenset(route.methods or ()) if isinstance(route, Route) else frozenset[str]()
                path, pattern, head = route.path, route.path_regex, _head_is_get(route, methods)
                methods |= {"HEAD"} if head else set()
                self._entries.append(Entry(path, pattern, methods, owner, error_body, request_id, head))

    def refuse(self, owner: str, path: str, pattern: re.Pattern[str], methods: Iterable[str]) -> None:
        """Raises ValueError for a path that would be open to everybody, or that others answer already."""
        sample = re.sub(r"{[^}]*}", "x", path)
        if is_open(sample) or any(map(pattern.match, OPEN)):
            raise ValueError(f"{owner} adds {path}, which is open to callers without a key: choose another path")
        for entry in self._entries:
            if entry.answers(sample, methods):
                raise ValueError(f"{owner} adds {' '.join(methods)} {path}, which {entry.owner} answers already")

    def methods(self, path: str) -> list[str]:
        return sorted({method for entry in self._entries if entry.pattern.match(path) for method in entry.methods})

    def head_is_get(self, path: str) -> bool:
        entry = next((each for each in self._entries if each.answers(path, ("HEAD",))), None)
        return entry is not None and entry.head_is_get

    def foreign(self, path: str) -> Entry | None:
        """The entry of another protocol than OpenAI's that answers this path, or one above it."""
        return next((each for each in self._entries if each.error_body and each.is_above(path)), None)


def _head_is_get(route: BaseRoute, methods: frozenset[str]) -> bool:
    """Starlette's own routes answer HEAD by themselves. Nothing is begun for nobody: an event stream has no HEAD."""
    if not isinstance(route, APIRoute) or "GET" not in methods or "HEAD" in methods:
        return False
    return EVENT_STREAM not in route.responses.get(HTTPStatus.OK, {}).get("content", {})
