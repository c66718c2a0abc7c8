"""What a turn leaves behind: its output as items, and how it ended."""

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
from services.history.item_rows import Place

End = Literal["completed", "incomplete", "failed", "cancelled"]


async def give_up(repositories: Repositories, turn: TurnRow, status: End) -> None:
    """Ends it for its writer, with what its last checkpoint saved."""
    said = turn.said or []
    await repositories.turns.give_up(turn, status, time.time())
    await repositories.items.add(output(turn, [_cut_short(items) for items in said]))


def _cut_short(items: Sequence[Item]) -> list[Item]:
    return [item | {"status": "incomplete" if item is items[-1] else "completed"} for item in items]


def output(turn: TurnRow, said: Sequence[Sequence[Item]]) -> list[ItemRow]:
    """What was said, as items."""
    place = Place(turn.owner, turn.conversation_id, turn.created_at, turn.parent_id, turn.id)
    return [row for choice, items in enumerate(said) for row in item_rows.chain(items, replace(place, choice=choice))]


async def has_gone_on(repositories: Repositories, turn: TurnRow) -> bool:
    """Whether others have added to its conversation since it was given up; answers by themselves branch freely."""
    if not await repositories.conversations.listed({turn.conversation_id}):
        return False
    state = (await repositories.conversations.states({turn.conversation_id}))[turn.conversation_id]
    own = {row.id for row in await repositories.items.of_turn(turn.id)} | {turn.parent_id}
    return state.is_answered or state.newest not in own


async def say_again(repositories: Repositories, turn: TurnRow, said: Sequence[Sequence[Item]]) -> None:
    """What became items when only a checkpoint of it was there, in full."""
    known = {row.id: row for row in await repositories.items.of_turn(turn.id)}
    new = output(turn, said)
    for row in new:
        if row.id in known:
            known[row.id].data, known[row.id].terms = row.data, row.terms
    await repositories.items.add([row for row in new if row.id not in known])


def choice(reply: Reply, index: int) -> dict[str, Any]:
    said = reply.choices[index]
    told: dict[str, Any] = {"finish_reason": said.finish.reason if said.finish else None}
    return told | ({"logprobs": [logprob(each) for each in said.logprobs]} if said.logprobs else {})


def usage(reply: Reply) -> dict[str, int]:
    """A prompt of several choices is counted once."""
    finishes = [said.finish for said in reply.choices if said.finish]
    return {
        "prompt_tokens": finishes[0].prompt_tokens,
        "cached_tokens": finishes[0].cached_tokens,
        **({"truncated_tokens": reply.head.truncated} if reply.head and reply.head.truncated is not None else {}),
        "completion_tokens": sum(finish.completion_tokens for finish in finishes),
        "reasoning_tokens": sum(finish.reasoning_tokens for finish in finishes),
    }
