"""Knows the names of all settings, and finds the nearest one for an unknown name."""

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import get_args, get_origin

from pydantic import BaseModel

PREFIX, JOINT = "parley_", "__"

# set by Kubernetes and Docker in every container if a service is called "parley" or "parley-…"
CLUSTER_VARIABLE = re.compile(
    r"parley(_\w+)?_(service_(host|port(_\w+)?)|port_\d+_(tcp|udp|sctp)(_\w+)?|(env|name)_\w+)"
)
CLUSTER_ADDRESS = re.compile(r"parley(_\w+)?_port")  # theirs if the value is an address
# used by our examples; without PARLEY_API_KEYS it is a misspelling of it, and would leave the server open
CLIENT_KEY = "parley_api_key"
CONFIG_FILE = "parley_config"  # names the file that has settings, and is none itself


def names(group: type[BaseModel], prefix: str = PREFIX) -> Iterator[str]:
    """In lower case, groups before their fields; a name ending in "__" allows any suffix."""
    for name, field in group.model_fields.items():
        yield prefix + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from names(field.annotation, prefix + name + JOINT)
        elif get_origin(field.annotation) is dict:
            yield prefix + name + JOINT


def refusals(group: type[BaseModel], variables: Mapping[str, str | None]) -> list[str]:
    """One line for each PARLEY_ name that is no setting."""
    known = set(names(group))
    lower = {name.lower(): value or "" for name, value in variables.items()}
    unknown = [name for name, value in lower.items() if name.startswith(PREFIX) and not _is_known(name, value, known)]
    if "parley_api_keys" in lower and CLIENT_KEY in unknown:
        unknown.remove(CLIENT_KEY)
    return [f"{name.upper()} is no setting{nearest(name, known)}" for name in unknown]


def is_set(variables: Mapping[str, str | None], path: Iterable[int | str]) -> bool:
    """Whether the setting at `path`, or a group around it, is among the variables, which are in lower case."""
    parts = list(map(str, path))
    return any(PREFIX + JOINT.join(parts[:length]).lower() in variables for length in range(1, len(parts) + 1))


def nearest(name: str, known: set[str]) -> str:
    found = get_close_matches(name, [each.rstrip("_") for each in known], n=1)
    return f": did you mean {found[0].upper()}?" if found else ""


def nearest_field(path: tuple[int | str, ...], group: type[BaseModel]) -> str:
    """For a key inside a JSON value; it is the last part of the path."""
    for part in path[:-1]:
        if isinstance(part, str):
            inner = group.model_fields[part].annotation if part in group.model_fields else None
            inner = next(iter(get_args(inner)), inner)
            if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
                return ""
            group = inner
    return nearest_key(str(path[-1]), group.model_fields)


def nearest_key(name: str, known: Iterable[str]) -> str:
    found = get_close_matches(name, known, n=1)
    return f": did you mean '{found[0]}'?" if found else ""


def _is_known(name: str, value: str, known: set[str]) -> bool:
    if name == CONFIG_FILE or name in known or any(name.startswith(each) for each in known if each.endswith(JOINT)):
        return True
    if CLUSTER_VARIABLE.fullmatch(name):
        return True
    return bool(CLUSTER_ADDRESS.fullmatch(name)) and "://" in value
