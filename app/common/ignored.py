"""Ignored parameters of requests: named in a header, or rejected in strict mode, never dropped silently."""

import re
from collections.abc import Iterable, Mapping
from itertools import islice

from starlette.responses import Response

from services.errors import InvalidRequest

HEADER = "x-parley-ignored"
PRINTABLE = re.compile(r"[\w.\-\[\]]{1,128}", re.ASCII)
MAX_NAMES = 20
MAX_CHECKED = 1_000
INDEX = re.compile(r"(?<=\.)\d+(?=\.)")


class Ignored:
    """The ignored parameters of one request. `headers` grows with each add(); read it when the answer begins."""

    def __init__(self, *, strict: bool) -> None:
        self.headers: dict[str, str] = {}
        self._strict = strict
        self._names: set[str] = set()

    def add(self, names: Iterable[str]) -> None:
        """Raises InvalidRequest for the first of them if the server is strict."""
        found = sorted(islice(names, MAX_CHECKED))
        if found and self._strict:
            raise InvalidRequest(f"Unknown parameter: '{found[0][:128]}'", param=found[0][:128])
        self._names |= {name for name in found if PRINTABLE.fullmatch(name)}
        if self._names:
            self.headers[HEADER] = ", ".join(_listed(sorted(self._names)))


def _listed(names: list[str]) -> list[str]:
    """If there are too many, keeps the first of those that differ only in their indices."""
    if len(names) > MAX_NAMES:
        names = list({INDEX.sub("*", name): name for name in reversed(names)}.values())[::-1]
    return names[:MAX_NAMES]


class UnknownKeys:
    def __init__(self, *, strict: bool) -> None:
        self._strict = strict

    def of(self, names: Iterable[str]) -> Ignored:
        """Starts with the names known before the model is; more may be added."""
        ignored = Ignored(strict=self._strict)
        ignored.add(names)
        return ignored

    def header(self, names: Iterable[str]) -> dict[str, str]:
        """The header, for requests whose ignored parameters are all known."""
        return self.of(names).headers


def add(ignored: Mapping[str, str], response: Response) -> Response:
    """Adds to the names that the response has already."""
    for name, value in ignored.items():
        before = response.headers.get(name)
        response.headers[name] = f"{before}, {value}" if before else value
    return response
