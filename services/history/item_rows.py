"""Converts items to rows of the items table."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from database import terms
from database.models import Item as ItemRow
from services.chat.items import Item, new_id

# Item types with a `status` field; items that arrive as input are completed.
TYPES_WITH_STATUS = {
    *("message", "function_call", "function_call_output", "file_search_call", "web_search_call", "shell_call"),
    *("image_generation_call", "computer_call", "computer_call_output", "tool_search_call", "tool_search_output"),
    *("program_output", "code_interpreter_call", "local_shell_call", "shell_call_output"),
    *("apply_patch_call", "apply_patch_call_output"),
}


@dataclass(frozen=True, slots=True)
class ItemPosition:
    """The owner, conversation, parent, turn and choice that new rows get."""

    owner: str
    conversation_id: str
    created_at: float
    parent_id: str | None = None
    turn_id: str | None = None
    choice: int | None = None


def with_defaults(item: Item) -> Item:
    """Adds a missing id and status."""
    status = {"status": "completed"} if item["type"] in TYPES_WITH_STATUS else {}
    return {"id": new_id(item), **status, **{key: value for key, value in item.items() if value is not None}}


def with_unique_ids(items: Sequence[Item], taken: set[str]) -> list[Item]:
    """Gives a new id to each item whose id is taken."""
    unique = []
    for item in items:
        unique.append(item | {"id": new_id(item)} if item["id"] in taken else item)
        taken = taken | {item["id"]}
    return unique


def linked_rows(items: Iterable[Item], position: ItemPosition) -> list[ItemRow]:
    """Each row is the child of the one before it."""
    rows: list[ItemRow] = []
    for item in items:
        rows.append(
            ItemRow(
                id=item["id"],
                owner=position.owner,
                conversation_id=position.conversation_id,
                parent_id=rows[-1].id if rows else position.parent_id,
                turn_id=position.turn_id,
                choice=position.choice,
                type=item["type"],
                data=item,
                terms=terms.indexed(position.owner, readable_text(item)),
                created_at=position.created_at,
            )
        )
    return rows


def copied_rows(rows: Sequence[ItemRow], conversation_id: str, created_at: float) -> list[ItemRow]:
    return (
        linked_rows([row.data for row in rows], ItemPosition(rows[0].owner, conversation_id, created_at))
        if rows
        else []
    )


def finite_timestamp(at: float) -> float:
    """0.0 for infinities and NaN, which unchecked imports may have stored."""
    return at if math.isfinite(at) else 0.0


def readable_text(item: Mapping[str, Any]) -> str:
    """The text of an item that a person would read; indexed for search."""
    texts: list[str] = []
    for name in ("content", "summary", "output"):
        parts = item.get(name)
        if isinstance(parts, str):
            texts.append(parts)
        elif isinstance(parts, list):
            texts += [_part_text(part) for part in parts if isinstance(part, dict)]
    texts += [value for name in ("name", "arguments", "input", "code") if isinstance(value := item.get(name), str)]
    return "\n".join(filter(None, texts))


def _part_text(part: Mapping[str, Any]) -> str:
    found = part.get("text") or part.get("refusal")
    return found if isinstance(found, str) else ""
