"""Request keys that nobody knows: named in a header, or refused, but never dropped in silence."""

import re
from collections.abc import Iterable

from services.errors import InvalidRequest

HEADER = "x-parley-ignored"
PRINTABLE = re.compile(r"[\w.\-]{1,64}", re.ASCII)


class UnknownKeys:
    def __init__(self, *, strict: bool) -> None:
        self._strict = strict

    def header(self, names: Iterable[str]) -> dict[str, str]:
        """The header that names them; raises InvalidRequest for the first if the server is strict."""
        unknown = list(names)
        if unknown and self._strict:
            raise InvalidRequest(f"Unknown parameter: '{unknown[0][:64]}'", param=unknown[0][:64])
        shown = [name for name in unknown if PRINTABLE.fullmatch(name)][:20]
        return {HEADER: ", ".join(shown)} if shown else {}
