"""Text that is still coming: where JSON ends in it, and what may be the beginning of a marker."""

from collections.abc import Sequence


class JsonEnd:
    """Finds where an object or a list ends. `depth`: how many of them have begun already."""

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._quoted = False
        self._escaped = False

    def feed(self, text: str) -> int | None:
        """How many characters of `text` still belong to it; None: all of them, and more is to come."""
        for place, letter in enumerate(text, 1):
            if self._escaped:
                self._escaped = False
            elif self._quoted:
                self._escaped = letter == "\\"
                self._quoted = letter != '"'
            elif letter == '"':
                self._quoted = True
            elif letter in "{[":
                self._depth += 1
            elif letter in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    return place
        return None


def overlap(text: str, markers: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins one of them."""
    longest = max((len(marker) for marker in markers), default=1) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(marker.startswith(text[-size:]) for marker in markers):
            return size
    return 0
