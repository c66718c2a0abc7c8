"""Strings that are looked for in a text while it comes: what ends an answer, and what marks parts of it."""

from collections.abc import Iterable, Sequence


def first(text: str, stops: Iterable[str]) -> tuple[int, str] | None:
    """The place of the one that begins first, and that one: the shortest, where several begin there."""
    found = [(place, len(stop), stop) for stop in stops if (place := text.find(stop)) >= 0]
    if not found:
        return None
    place, _, stop = min(found)
    return place, stop


def overlap(text: str, stops: Sequence[str]) -> int:
    """Length of the longest end of `text` that begins one of them."""
    if not stops:
        return 0
    longest = max(map(len, stops)) - 1
    for size in range(min(longest, len(text)), 0, -1):
        if any(stop.startswith(text[-size:]) for stop in stops):
            return size
    return 0
