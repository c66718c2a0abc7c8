"""Names, in a header, the request keys that nobody knows: ignored, but not silently."""

import re
from collections.abc import Iterable

HEADER = "x-parley-ignored"
PRINTABLE = re.compile(r"[\w.\-]{1,64}", re.ASCII)


def ignored_header(names: Iterable[str]) -> dict[str, str]:
    shown = [name for name in names if PRINTABLE.fullmatch(name)][:20]
    return {HEADER: ", ".join(shown)} if shown else {}
