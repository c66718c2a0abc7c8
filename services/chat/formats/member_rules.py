"""Lark rules for arguments in the order of their schema, of which some may be left out."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from services.chat.formats.lark_text import pattern

MAX_MORE = 16  # that the schema does not name


@dataclass(frozen=True, slots=True)
class Member:
    grammar: str  # of its name and its value
    is_required: bool


def member_rules(name: str, members: Sequence[Member], separator: str, more: str | None) -> Iterator[str]:
    """`name`: all of them. `separator`, and `more` of any other argument, in Lark.

    Of each there is a rule for where others came before it, and one for where it is the first: their number grows as
    that of the arguments.
    """
    yield f"{name}: {name}-first-0"
    for place, each in enumerate(members):
        after = f"{name}-{place} {name}-rest-{place + 1}"
        yield f"{name}-{place}: {each.grammar}"
        yield f"{name}-first-{place}: {after}" + ("" if each.is_required else f" | {name}-first-{place + 1}")
        yield f"{name}-rest-{place}: {separator} {after}" + ("" if each.is_required else f" | {name}-rest-{place + 1}")
    if more is None:
        yield f'{name}-first-{len(members)}: ""'
        yield f'{name}-rest-{len(members)}: ""'
        return
    yield f"{name}-more: {more}"
    yield f"{name}-first-{len(members)}: ({name}-more ({separator} {name}-more){{0,{MAX_MORE - 1}}})?"
    yield f"{name}-rest-{len(members)}: ({separator} {name}-more){{0,{MAX_MORE}}}"


def other_key(name: str) -> str:
    """A terminal: what an argument that the schema does not name may be called."""
    return f"{name}-key".upper()


def other_key_rule(name: str, keys: Iterable[str]) -> str:
    named = "|".join(map(pattern, keys)) or "[^a]{0}"
    return f"{other_key(name)}: /[A-Za-z_][A-Za-z0-9_]{{0,63}}/ & ~/{named}/"
