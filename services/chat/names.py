"""Names of tools as a model knows them: one flat name for each, also for those of a namespace."""

import hashlib
from collections.abc import Container, Iterable, Mapping
from typing import Any

SEARCH = "tool_search"
MAX_NAME = 64  # characters: models and templates expect no longer ones


def flat(name: str, namespace: str | None = None, taken: Container[str] = ()) -> str:
    """`namespace__name`; what is too long, or another tool's name already, ends in a digest."""
    if namespace is None:
        return name
    whole = f"{namespace}__{name}"
    if len(whole) <= MAX_NAME and whole not in taken:
        return whole
    digest = hashlib.sha256(f"{namespace}\0{name}".encode()).hexdigest()[:8]
    return f"{whole[: MAX_NAME - 9]}_{digest}"


def flat_name(item: Mapping[str, Any]) -> str:
    """Of a call, which may have been given either way."""
    return flat(item["name"], item.get("namespace"))


def found(tools: Iterable[Mapping[str, Any]]) -> str:
    """The result of a search in words: the tools themselves are shown where all of them are."""
    names = [name for tool in tools for name in _names(tool)]
    return f"These can be called now: {', '.join(names)}" if names else "Nothing was found."


def _names(tool: Mapping[str, Any]) -> list[str]:
    match tool:
        case {"type": "namespace", "name": str(namespace), "tools": list(tools)}:
            return [flat(each["name"], namespace) for each in tools]
        case {"type": "function" | "custom", "name": str(name)}:
            return [name]
        case _:
            return []
