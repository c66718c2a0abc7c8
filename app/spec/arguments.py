"""Arguments of a tool's call, which the model writes as text, as the object that other protocols carry."""

from typing import Any

from pydantic_core import from_json


def as_object(text: str) -> dict[str, Any]:
    """Of an answer that was cut, as much as came."""
    try:
        found = from_json(text, allow_partial=True)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
