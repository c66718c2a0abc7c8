"""What a request brings that is left aside: unknown keys at any depth, and hints that nothing here acts upon.

A model takes keys that it does not know (`extra="allow"` in `Request`), and names in `HINTS` those that it knows and
leaves aside; `Unserved` is left aside as a whole. `ignored_keys` finds them in a validated request. Objects of a free
form, as JSON schemas, are not searched: all of their keys are the caller's own.
"""

from collections.abc import Iterator
from functools import cache
from itertools import islice
from typing import Any, get_args

from pydantic import BaseModel

from schemas.request_schema import Request

MOST = 1_000  # of one part of a request: more of them tell nobody anything


class Kept(dict[str, Any]):
    """A validated object as plain JSON, with the paths of what was left aside in it."""

    ignored: tuple[str, ...] = ()


def kept(model: Request, *, extra: bool = True, **dump: Any) -> Kept:
    """With `extra`, unknown keys are part of it. They are named either way; `dump`: how pydantic is to write it."""
    unknown = None if extra or not model.model_extra else set(model.model_extra)
    found = Kept(model.model_dump(exclude=unknown, **dump))
    if (model.model_extra or _can_have(type(model))) and (ignored := tuple(islice(ignored_keys(model), MOST))):
        found.ignored = ignored
    return found


def ignored_keys(value: object, path: str = "") -> Iterator[str]:
    """Their dotted paths, with an index for each list: `messages.2.reasoning_details`."""
    match value:
        case BaseModel():
            own = value.left_aside() if isinstance(value, Request) else value.model_extra or ()
            yield from (path + name for name in own)
            for field, name in _nesting(type(value)):
                if inner := getattr(value, field):
                    yield from ignored_keys(inner, f"{path}{name}.")
        case Kept():
            yield from (path + name for name in value.ignored)
        case list():
            for index, each in enumerate(value):
                yield from ignored_keys(each, f"{path}{index}.")


@cache
def _can_have(model: type[Request]) -> bool:
    """Something to be left aside besides unknown keys. Most parts of a request are texts, and cannot."""
    return bool(model.HINTS or _nesting(model)) or model.left_aside is not Request.left_aside


@cache
def _nesting(model: type[BaseModel]) -> tuple[tuple[str, str], ...]:
    """The fields that can have something to be left aside in them, and what they are called on the wire: all others,
    of which some have a million tokens, are never looked at."""
    fields = model.model_fields.items()
    return tuple((name, field.alias or name) for name, field in fields if _has_objects(field.annotation))


def _has_objects(annotation: object) -> bool:
    if isinstance(annotation, type) and not get_args(annotation):
        return issubclass(annotation, BaseModel | Kept)
    return any(map(_has_objects, get_args(annotation)))
