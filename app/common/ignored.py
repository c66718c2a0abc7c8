"""What requests bring that is left aside: named in a header, or refused, but never dropped in silence."""

import re
from collections.abc import Iterable, Mapping
from itertools import islice

from starlette.responses import Response

from services.errors import InvalidRequest

HEADER = "x-parley-ignored"
PRINTABLE = re.compile(r"[\w.\-\[\]]{1,128}", re.ASCII)
SHOWN = 20
LOOKED_AT = 1_000
INDEX = re.compile(r"(?<=\.)\d+(?=\.)")


class Ignored:
    """Of one request. `headers` grows with what is added, so that it is read when the answer begins."""

    def __init__(self, *, strict: bool) -> None:
        self.headers: dict[str, str] = {}
        self._strict = strict
        self._names: set[str] = set()

    def add(self, names: Iterable[str]) -> None:
        """Raises InvalidRequest for the first of them if the server is strict."""
        found = sorted(islice(names, LOOKED_AT))
        if found and self._strict:
            raise InvalidRequest(f"Unknown parameter: '{found[0][:128]}'", param=found[0][:128])
        self._names |= {name for name in found if PRINTABLE.fullmatch(name)}
        if self._names:
            self.headers[HEADER] = ", ".join(_shown(sorted(self._names)))


def _shown(names: list[str]) -> list[str]:
    """Where they are too many, of those that differ only in their indices the first."""
    if len(names) > SHOWN:
        names = list({INDEX.sub("*", name): name for name in reversed(names)}.values())[::-1]
    return names[:SHOWN]


class UnknownKeys:
    def __init__(self, *, strict: bool) -> None:
        self._strict = strict

    def of(self, names: Iterable[str]) -> Ignored:
        """With those that can be told before a model is asked."""
        ignored = Ignored(strict=self._strict)
        ignored.add(names)
        return ignored

    def header(self, names: Iterable[str]) -> dict[str, str]:
        """For answers of which no more becomes known."""
        return self.of(names).headers


def add(ignored: Mapping[str, str], response: Response) -> Response:
    """Beside the names that the answer has of its own."""
    for name, value in ignored.items():
        before = response.headers.get(name)
        response.headers[name] = f"{before}, {value}" if before else value
    return response
