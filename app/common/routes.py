"""A table of all routes: answers which methods a path has, and detects routes that shadow each other."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from starlette.routing import BaseRoute, Mount, Route

from app.common.auth import OPEN, is_open
from app.common.errors import ErrorBody
from app.common.rate_headers import RateHeaders


@dataclass(frozen=True, slots=True)
class Entry:
    path: str
    pattern: re.Pattern[str]
    methods: frozenset[str]  # empty: any
    owner: str
    error_body: ErrorBody | None = None  # None: OpenAI's
    request_id: str | None = None  # a second name of the header x-request-id
    rate_headers: RateHeaders | None = None  # None: OpenAI's

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
        rate_headers: RateHeaders | None = None,
    ) -> None:
        """Adds routes in the order of matching."""
        for route in routes:
            if isinstance(route, Route | Mount):
                methods = frozenset(route.methods or ()) if isinstance(route, Route) else frozenset[str]()
                protocol = (error_body, request_id, rate_headers)
                self._entries.append(Entry(route.path, route.path_regex, methods, owner, *protocol))

    def refuse(self, owner: str, path: str, pattern: re.Pattern[str], methods: Iterable[str]) -> None:
        """Raises ValueError for a path that would need no key, or that another route shadows."""
        sample = re.sub(r"{[^}]*}", "x", path)
        if is_open(sample) or any(map(pattern.match, OPEN)):
            raise ValueError(f"{owner} adds {path}, which is open to callers without a key: choose another path")
        for entry in self._entries:
            if entry.answers(sample, methods):
                raise ValueError(f"{owner} adds {' '.join(methods)} {path}, which {entry.owner} answers already")

    def methods(self, path: str) -> list[str]:
        return sorted({method for entry in self._entries if entry.pattern.match(path) for method in entry.methods})

    def foreign(self, path: str) -> Entry | None:
        """The entry of a protocol other than OpenAI's that has this path or a parent of it."""
        return next((each for each in self._entries if each.error_body and each.is_above(path)), None)
