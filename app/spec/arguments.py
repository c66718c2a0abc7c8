"""Parses the arguments of a tool call, which the model writes as text, to an object."""

from typing import Any

from pydantic_core import from_json


def as_object(text: str) -> dict[str, Any]:
    """Parses as much as there is of truncated arguments."""
    try:
        found = from_json(text, allow_partial=True)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
