"""Which methods answer on which path: known before any route is looked up, and who of two would never be reached."""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from starlette.routing import BaseRoute, Mount, Route

from app.common.auth import OPEN, is_open
from app.common.errors import ErrorBody


@dataclass(frozen=True, slots=True)
class Entry:
    path: str
    pattern: re.Pattern[str]
    methods: frozenset[str]  # empty: every one
    owner: str
    error_body: ErrorBody | None = None  # None: OpenAI's
    request_id: str | None = None  # a second name of the header x-request-id

    def answers(self, path: str, methods: Iterable[str]) -> bool:
        return bool(self.pattern.match(path)) and (not self.methods or not self.methods.isdisjoint(methods))


class Routes:
    def __init__(self) -> None:
        self._entries: list[Entry] = []

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
                entry = Entry(route.path, route.path_regex, methods, owner, error_body, request_id)
                self._entries.append(entry)

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

    def foreign(self, path: str) -> Entry | None:
        """The entry of another protocol than OpenAI's that answers this path."""
        return next((each for each in self._entries if each.error_body and each.pattern.match(path)), None)
