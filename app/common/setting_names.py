"""Which variables are settings, and what a name that is none may have been meant to be."""

import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import get_args, get_origin

from pydantic import BaseModel

PREFIX, JOINT = "parley_", "__"

# what Kubernetes and Docker put into every container beside a service that is called "parley" or "parley-…"
OF_A_CLUSTER = re.compile(r"parley(_\w+)?_(service_(host|port(_\w+)?)|port_\d+_(tcp|udp|sctp)(_\w+)?|(env|name)_\w+)")
ADDRESS = re.compile(r"parley(_\w+)?_port")  # there with an address as its value
KEY_OF_A_CLIENT = "parley_api_key"  # our examples send it; alone it is a server's, misspelt: that would be open to all


def names(group: type[BaseModel], prefix: str = PREFIX) -> Iterator[str]:
    """In lower case, groups before what is in them; "…__" at the end: whatever follows is a name."""
    for name, field in group.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from names(field.annotation, prefix + name + JOINT)
        elif get_origin(field.annotation) is dict:
            yield prefix + name + JOINT


def refusals(group: type[BaseModel], given: Mapping[str, str | None]) -> list[str]:
    """A line for each of our names that is no setting."""
    known = set(names(group))
    lower = {name.lower(): value or "" for name, value in given.items()}
    unknown = [name for name, value in lower.items() if name.startswith(PREFIX) and not _is_known(name, value, known)]
    if "parley_api_keys" in lower and KEY_OF_A_CLIENT in unknown:
        unknown.remove(KEY_OF_A_CLIENT)
    return [f"{name.upper()} is no setting{nearest(name, known)}" for name in unknown]


def nearest(name: str, known: set[str]) -> str:
    found = get_close_matches(name, [each.rstrip("_") for each in known], n=1)
    return f": did you mean {found[0].upper()}?" if found else ""


def nearest_field(path: tuple[int | str, ...], group: type[BaseModel]) -> str:
    """For a key in a value that is written as JSON: the path ends with it."""
    for part in path[:-1]:
        if isinstance(part, str):
            inner = group.model_fields[part].annotation if part in group.model_fields else None
            inner = next(iter(get_args(inner)), inner)
            if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
                return ""
            group = inner
    found = get_close_matches(str(path[-1]), group.model_fields, n=1)
    return f": did you mean '{found[0]}'?" if found else ""


def _is_known(name: str, value: str, known: set[str]) -> bool:
    if name in known or any(name.startswith(each) for each in known if each.endswith(JOINT)):
        return True
    if OF_A_CLUSTER.fullmatch(name):
        return True
    return bool(ADDRESS.fullmatch(name)) and "://" in value
