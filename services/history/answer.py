"""A stored turn as the routes show it: its input, its output by choice, and how it ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from database.models import Item as ItemRow
from database.models import Turn as TurnRow
from services.chat.compaction.item import public_item
from services.chat.items import Item
from services.history.item_rows import finite_timestamp


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    id: str
    conversation_id: str | None  # None: the turn belongs to no listed conversation
    previous_id: str | None
    status: str
    background: bool
    model: str
    request: dict[str, Any]
    metadata: dict[str, Any]
    fingerprint: str | None
    input: tuple[Item, ...]
    output: tuple[tuple[Item, ...], ...]  # by choice; of a running turn, the output of its last checkpoint
    choices: tuple[dict[str, Any], ...]  # how each ended: finish_reason, and logprobs if they were requested
    usage: dict[str, int] | None
    error: dict[str, Any] | None
    created_at: float
    completed_at: float | None

    @property
    def is_finished(self) -> bool:
        return self.completed_at is not None


def answer_of(turn: TurnRow, rows: Sequence[ItemRow], *, listed: bool) -> Answer:
    output = _output(turn, rows)
    unfinished: dict[str, Any] = {"finish_reason": None}  # the writer is gone
    return Answer(
        id=turn.id,
        conversation_id=turn.conversation_id if listed else None,
        previous_id=turn.previous_id,
        status=turn.status,
        background=turn.background,
        model=turn.model,
        request=turn.request,
        metadata=turn.metadata_,
        fingerprint=turn.fingerprint,
        input=tuple(public_item(row.data) for row in rows if row.choice is None),
        output=output,
        choices=tuple(turn.choices or [unfinished for _ in output]),
        usage=turn.usage,
        error=turn.error,
        created_at=finite_timestamp(turn.created_at),
        completed_at=None if turn.completed_at is None else finite_timestamp(turn.completed_at),
    )


def _output(turn: TurnRow, rows: Sequence[ItemRow]) -> tuple[tuple[Item, ...], ...]:
    if turn.completed_at is None:
        return tuple(tuple(map(public_item, items)) for items in turn.partial_output or [])
    size = max([len(turn.choices or ()), 1, *(row.choice + 1 for row in rows if row.choice is not None)])
    by_choice: list[list[Item]] = [[] for _ in range(size)]
    for row in rows:
        if row.choice is not None:
            by_choice[row.choice].append(public_item(row.data))
    return tuple(map(tuple, by_choice))
