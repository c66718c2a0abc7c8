"""The result of a turn: its output as item rows, and how it ended."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from database.models import Item as ItemRow
from database.models import Turn as TurnRow
from database.repositories import Repositories
from services.chat.answer.output import logprob
from services.chat.events import Reply
from services.chat.items import Item
from services.history import item_rows
from services.history.item_rows import ItemPosition

FinalStatus = Literal["completed", "incomplete", "failed", "cancelled"]


async def force_finish(repositories: Repositories, turn: TurnRow, status: FinalStatus) -> None:
    """Finishes a turn in place of its writer, with the output of its last checkpoint."""
    output = turn.partial_output or []
    await repositories.turns.force_finish(turn, status, time.time())
    await repositories.items.add(output_rows(turn, [_interrupted(items) for items in output]))


def _interrupted(items: Sequence[Item]) -> list[Item]:
    return [item | {"status": "incomplete" if item is items[-1] else "completed"} for item in items]


def output_rows(turn: TurnRow, output: Sequence[Sequence[Item]]) -> list[ItemRow]:
    position = ItemPosition(turn.owner, turn.conversation_id, turn.created_at, turn.parent_id, turn.id)
    return [
        row
        for choice, items in enumerate(output)
        for row in item_rows.linked_rows(items, replace(position, choice=choice))
    ]


async def has_newer_items(repositories: Repositories, turn: TurnRow) -> bool:
    """Whether its conversation has been continued since the turn was force-finished. Unlisted answers may branch."""
    if not await repositories.conversations.listed({turn.conversation_id}):
        return False
    state = (await repositories.conversations.states({turn.conversation_id}))[turn.conversation_id]
    own = {row.id for row in await repositories.items.of_turn(turn.id)} | {turn.parent_id}
    return state.is_running or state.newest_item_id not in own


async def replace_output(repositories: Repositories, turn: TurnRow, output: Sequence[Sequence[Item]]) -> None:
    """Replaces items made of a checkpoint by the final output."""
    existing = {row.id: row for row in await repositories.items.of_turn(turn.id)}
    rows = output_rows(turn, output)
    for row in rows:
        if row.id in existing:
            existing[row.id].data, existing[row.id].terms = row.data, row.terms
    await repositories.items.add([row for row in rows if row.id not in existing])


def choice_record(reply: Reply, index: int) -> dict[str, Any]:
    choice = reply.choices[index]
    record: dict[str, Any] = {"finish_reason": choice.finish.reason if choice.finish else None}
    return record | ({"logprobs": [logprob(each) for each in choice.logprobs]} if choice.logprobs else {})


def usage_record(reply: Reply) -> dict[str, int]:
    """The prompt of several choices is counted once."""
    finishes = [choice.finish for choice in reply.choices if choice.finish]
    return {
        "prompt_tokens": finishes[0].prompt_tokens,
        "cached_tokens": finishes[0].cached_tokens,
        **({"truncated_tokens": reply.head.truncated} if reply.head and reply.head.truncated is not None else {}),
        "completion_tokens": sum(finish.completion_tokens for finish in finishes),
        "reasoning_tokens": sum(finish.reasoning_tokens for finish in finishes),
    }
