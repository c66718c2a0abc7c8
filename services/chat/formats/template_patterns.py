"""Regular expressions of response templates as literals, spaces and groups: those that are nothing else.

They come with a model's files, so that none is run that could take for ever: what has no such reading is left to
`region_calls`, which bounds the time that it takes.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product

MAX_CHOICES = 16
PIECE = re.compile(
    r"""(?P<space>(?:\\[sn]|[ \n])[*+?]+)
    | \(\?P<(?P<group>\w+)>(?P<inner>(?:[^()\\]|\\.)+)\)
    | \(\?:(?P<choice>(?:[^()\\]|\\.)+)\)
    | (?P<text>(?:\\[^\w\s]|\\[nt]|[^\\^$.|?*+()\[\]{}])+?)(?![*+?{])""",
    re.VERBOSE | re.DOTALL,
)
ESCAPE = re.compile(r"\\(.)", re.DOTALL)
INSIDE = re.compile(r"\[[^\]]*\]|\([^()]*\)")  # of classes and groups
LETTERS = {"n": "\n", "t": "\t"}
# of groups: one that takes a run of characters, whichever they are
RUN = re.compile(r"(?:\\[wS]|\.|\[(?:[^\]\\]|\\.)+\])[*+]\??")


@dataclass(frozen=True, slots=True)
class Literal:
    text: str


@dataclass(frozen=True, slots=True)
class Space:
    """Any white space, or none."""


@dataclass(frozen=True, slots=True)
class Group:
    name: str


Part = Literal | Space | Group
Parts = tuple[Part, ...]


def read_mark(field: Mapping[str, object], key: str) -> list[Parts]:
    """What opens or closes a field: any of these. Empty: nothing does. ValueError: it has no such reading."""
    if key in field:
        given = field[key]
        texts = [each for each in (given if isinstance(given, list) else [given]) if isinstance(each, str) and each]
        if not texts or (isinstance(given, list) and len(texts) < len(given)):
            raise ValueError(f"'{key}' is no text")
        return [(Literal(each),) for each in texts]
    pattern = field.get(f"{key}_pattern")
    if pattern is None:
        return []
    if not isinstance(pattern, str):
        raise ValueError(f"'{key}_pattern' is no text")
    return read_pattern(pattern)


def read_pattern(pattern: str) -> list[Parts]:
    ways: list[list[Parts]] = []
    at = 0
    while at < len(pattern):
        found = PIECE.match(pattern, at)
        if not found:
            raise ValueError(f"{pattern!r} is more than literals, spaces and groups")
        ways.append(list(_ways(found, pattern)))
        at = found.end()
    chosen = list(product(*ways)) if _num(ways) <= MAX_CHOICES else []
    if not chosen:
        raise ValueError(f"{pattern!r} has too many ways")
    return [_merged([part for each in way for part in each]) for way in chosen]


def _ways(found: re.Match[str], pattern: str) -> list[Parts]:
    if found["space"]:
        return [(Space(),)]
    if found["group"]:
        if not RUN.fullmatch(found["inner"]):
            raise ValueError(f"{pattern!r} has a group of another kind")
        return [(Group(found["group"]),)]
    if found["choice"]:
        return [parts for each in re.split(r"(?<!\\)\|", found["choice"]) for parts in read_pattern(each)]
    return [(Literal(ESCAPE.sub(lambda each: LETTERS.get(each[1], each[1]), found["text"])),)]


def _num(ways: Sequence[Sequence[Parts]]) -> int:
    size = 1
    for each in ways:
        size *= len(each)
    return size


def _merged(parts: Sequence[Part]) -> Parts:
    merged: list[Part] = []
    for each in parts:
        if isinstance(each, Literal) and merged and isinstance(merged[-1], Literal):
            merged[-1] = Literal(merged[-1].text + each.text)
        else:
            merged.append(each)
    return tuple(merged)


def literal(parts: Parts) -> str | None:
    """What it is without the space around it, if that is one literal."""
    left = without_space(parts)
    return left[0].text if len(left) == 1 and isinstance(left[0], Literal) else None


def without_space(parts: Parts) -> Parts:
    first, last = 0, len(parts)
    while first < last and isinstance(parts[first], Space):
        first += 1
    while last > first and isinstance(parts[last - 1], Space):
        last -= 1
    return parts[first:last]


def first_literal(pattern: str) -> str:
    """What all that a pattern matches begins with, but for white space; empty: there is nothing, or no telling."""
    left = pattern.removeprefix(r"\s*").removeprefix(r"\s+")
    found = PIECE.match(left)
    text = ""
    while found and found["text"] and not left.startswith("|", found.end()):
        text += ESCAPE.sub(lambda each: LETTERS.get(each[1], each[1]), found["text"])
        found = PIECE.match(left, found.end())
    return "" if "|" in INSIDE.sub("", ESCAPE.sub("", left)) else text.rstrip()
