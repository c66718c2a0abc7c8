"""Items as rows of the database."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from database import terms
from database.models import Item as ItemRow
from services.chat.items import Item, new_id

# These show how far they are; they are complete when they are given.
HAVE_STATUS = {
    *("message", "function_call", "function_call_output", "file_search_call", "web_search_call", "shell_call"),
    *("image_generation_call", "computer_call", "computer_call_output", "tool_search_call", "tool_search_output"),
    *("program_output", "code_interpreter_call", "local_shell_call", "shell_call_output"),
    *("apply_patch_call", "apply_patch_call_output"),
}


@dataclass(frozen=True, slots=True)
class Place:
    """Where rows go."""

    owner: str
    conversation_id: str
    created_at: float
    parent_id: str | None = None
    turn_id: str | None = None
    choice: int | None = None


def whole(item: Item) -> Item:
    """With the id and the status that it may have come without."""
    status = {"status": "completed"} if item["type"] in HAVE_STATUS else {}
    return {"id": new_id(item), **status, **{key: value for key, value in item.items() if value is not None}}


def renamed(items: Sequence[Item], taken: set[str]) -> list[Item]:
    """With new ids where theirs are taken."""
    own = []
    for item in items:
        own.append(item | {"id": new_id(item)} if item["id"] in taken else item)
        taken = taken | {item["id"]}
    return own


def chain(items: Iterable[Item], place: Place) -> list[ItemRow]:
    """Each goes on from the one before it."""
    rows: list[ItemRow] = []
    for item in items:
        rows.append(
            ItemRow(
                id=item["id"],
                owner=place.owner,
                conversation_id=place.conversation_id,
                parent_id=rows[-1].id if rows else place.parent_id,
                turn_id=place.turn_id,
                choice=place.choice,
                type=item["type"],
                data=item,
                terms=terms.indexed(place.owner, text(item)),
                created_at=place.created_at,
            )
        )
    return rows


def copies(rows: Sequence[ItemRow], conversation_id: str, created_at: float) -> list[ItemRow]:
    return chain([row.data for row in rows], Place(rows[0].owner, conversation_id, created_at)) if rows else []


def seconds(at: float) -> float:
    """A time that is none, of an import that nobody checked, is shown as the beginning of all."""
    return at if math.isfinite(at) else 0.0


def text(item: Mapping[str, Any]) -> str:
    """What a person would read of it."""
    said: list[str] = []
    for name in ("content", "summary", "output"):
        parts = item.get(name)
        if isinstance(parts, str):
            said.append(parts)
        elif isinstance(parts, list):
            said += [_of_part(part) for part in parts if isinstance(part, dict)]
    said += [value for name in ("name", "arguments", "input", "code") if isinstance(value := item.get(name), str)]
    return "\n".join(filter(None, said))


def _of_part(part: Mapping[str, Any]) -> str:
    found = part.get("text") or part.get("refusal")
    return found if isinstance(found, str) else ""
